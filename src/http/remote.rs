//! Pictures as JSON bodies hold them: in base64, or as the address of one that is fetched.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use super::{
    App,
    problem::{Code, Problem},
    request_context,
    submission::Lease,
};
use crate::{fetch::FetchError, traces::timed};

/// Pictures of one request that are fetched at once.
const AT_ONCE: usize = 8;

/// A picture that was sent, or its address.
#[derive(Debug)]
pub(super) struct ImageSource {
    /// Its bytes; none before they are fetched.
    pub(super) bytes: Bytes,
    url: Option<String>,
}

impl From<Bytes> for ImageSource {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, url: None }
    }
}

impl ImageSource {
    /// The picture at an address.
    pub(super) fn at(url: &str) -> Self {
        Self { bytes: Bytes::new(), url: Some(url.to_owned()) }
    }
}

/// Fetches those that were not sent, several at a time; each comes with its position in the request. Their memory is part of the request's.
pub(super) async fn fetch<'a>(
    app: &App,
    pictures: impl Iterator<Item = (usize, &'a mut ImageSource)>,
    lease: &mut Lease,
) -> Result<(), Problem> {
    let missing: Vec<(usize, &mut ImageSource)> = pictures.filter(|(_, source)| source.url.is_some()).collect();
    let urls: Vec<(usize, String)> = missing.iter().filter_map(|(index, source)| Some((*index, source.url.clone()?))).collect();
    let deadline = request_context::deadline().map(tokio::time::Instant::into_std);
    let fetched: Vec<_> = stream::iter(urls)
        .map(|(index, url)| async move {
            let (fetcher, memory) = (app.fetcher.clone(), app.bodies.clone());
            let work = move || {
                let mut permit = memory.take(0).ok_or(FetchError::NoRoom)?;
                let take = |bytes| memory.take(bytes).map(|part| permit.merge(part)).is_some();
                let bytes = fetcher.fetch(&url, deadline, take)?;
                Ok::<_, FetchError>((bytes, permit))
            };
            timed("fetch", app.fetches.run(work)).await?.map_err(|error| Problem::from(error).at(index))
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    for ((_, source), (bytes, permit)) in missing.into_iter().zip(fetched) {
        source.bytes = bytes;
        lease.add(permit);
    }
    Ok(())
}

impl From<FetchError> for Problem {
    fn from(error: FetchError) -> Self {
        let code = match error {
            FetchError::Off => Code::UrlFetchingOff,
            FetchError::NotAllowed(_) => Code::UrlNotAllowed,
            FetchError::Failed(_) => Code::UrlNotFetched,
            FetchError::TooLarge(_) => Code::BodyTooLarge,
            FetchError::NoRoom => Code::QueueFull,
        };
        let mut problem = Self::new(code, error.to_string());
        if code == Code::QueueFull {
            problem.retry_after = Some(std::time::Duration::from_secs(1));
        }
        problem
    }
}
