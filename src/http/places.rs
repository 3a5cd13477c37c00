//! Places for work of which few pieces may run at once. One API key may hold half of them, rounded up.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use super::keys::Key;

/// Places for one kind of work.
pub(super) struct Places {
    all: Arc<Semaphore>,
    /// Most places of one key.
    most: usize,
    /// By the name of the key. There are as many as keys that ever asked.
    by_key: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// A place that is taken, until this is dropped.
pub(super) struct Place {
    _all: OwnedSemaphorePermit,
    _of_key: Option<OwnedSemaphorePermit>,
}

/// No place is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The key holds as many as one key may.
    ByKey {
        /// That many.
        most: usize,
    },
    /// All are taken.
    All,
}

impl Places {
    pub(super) fn new(places: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(places)), most: places.div_ceil(2), by_key: Mutex::default() }
    }

    /// Takes a place for a request with this key, or says why none is free.
    pub(super) fn try_take(&self, key: Option<&Key>) -> Result<Place, Taken> {
        // A semaphore of this type is never closed.
        let taken = |otherwise| move |_: TryAcquireError| otherwise;
        let of_key = self.of(key).map(Semaphore::try_acquire_owned).transpose().map_err(taken(Taken::ByKey { most: self.most }))?;
        let all = Arc::clone(&self.all).try_acquire_owned().map_err(taken(Taken::All))?;
        Ok(Place { _all: all, _of_key: of_key })
    }

    /// Waits for a place for a request with this key.
    pub(super) async fn take(&self, key: Option<&Key>) -> Place {
        // The key's own first: while a request waits for that, it keeps no place from others.
        let of_key = match self.of(key) {
            Some(places) => Some(places.acquire_owned().await.expect("this semaphore is never closed")),
            None => None,
        };
        let all = Arc::clone(&self.all).acquire_owned().await.expect("this semaphore is never closed");
        Place { _all: all, _of_key: of_key }
    }

    fn of(&self, key: Option<&Key>) -> Option<Arc<Semaphore>> {
        let name = key?.name();
        let mut by_key = self.by_key.lock();
        let places = by_key.entry(name.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(self.most)));
        Some(Arc::clone(places))
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::pin, task::Context};

    use super::{super::Keys, *};

    fn key(name: &str) -> Arc<Key> {
        let keys: Keys = format!("{name} 0123456789abcdef-{name} full").parse().unwrap();
        Arc::clone(keys.find(format!("0123456789abcdef-{name}").as_bytes()).unwrap())
    }

    #[test]
    fn a_key_holds_half_rounded_up_and_gives_it_back() {
        let (places, one, two) = (Places::new(5), key("one"), key("two"));
        let mut held: Vec<Place> = (0..3).map(|_| places.try_take(Some(&one)).unwrap()).collect();
        assert_eq!(places.try_take(Some(&one)).err(), Some(Taken::ByKey { most: 3 }));
        let others = [places.try_take(Some(&two)).unwrap(), places.try_take(None).unwrap()];
        assert_eq!(places.try_take(Some(&two)).err(), Some(Taken::All));
        held.pop();
        // What was refused for want of any place holds none of the key's.
        let _third = [places.try_take(Some(&two)).unwrap()];
        drop((held, others));
        assert!((0..3).map(|_| places.try_take(Some(&one))).collect::<Result<Vec<_>, _>>().is_ok());
    }

    #[test]
    fn a_key_that_waits_for_its_own_places_keeps_none_from_others() {
        let (places, one, two) = (Places::new(2), key("one"), key("two"));
        let mut context = Context::from_waker(std::task::Waker::noop());
        let held = places.try_take(Some(&one)).unwrap();
        let mut waiting = pin!(places.take(Some(&one)));
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        drop(places.try_take(Some(&two)).unwrap());
        drop(held);
        assert!(waiting.as_mut().poll(&mut context).is_ready());
    }
}
