//! Importing the vectors that `embed` wrote: nothing is embedded again.

use std::path::Path;

use dino_server::encoding::Dtype;
use dino_server::files::table::Vectors;
use dino_server::files::vectors::Header;
use dino_server::index::{Item, ModelTag, NewItem, Spec};
use dino_vision::embedding::Pooling;

use super::{Args, Target, ignored};
use crate::cli::{open_model, progress};

pub(super) fn run(args: &Args, file: &Path, mut vectors: Vectors) -> anyhow::Result<()> {
    check(args, file, &vectors.header)?;
    ignored(&vectors.ignored);
    let Header { dim, fingerprint, precision, .. } = vectors.header.clone();
    let mut target = Target::open(args, Spec::pictures(dim, ModelTag { fingerprint, precision: Some(precision) }))?;
    let progress = progress(vectors.count);
    let stored = target.store.collection(&args.collection).ok();
    while let Some((rows, skipped)) = vectors.next_batch()? {
        progress.inc((rows.len() + skipped.len()) as u64);
        for (row, reason) in skipped {
            target.skip(&progress, &format!("row {row} of {}", file.display()), &reason);
        }
        let mut items = Vec::with_capacity(rows.len());
        for (item, vector) in rows {
            // Whether this very picture is stored under this id.
            let known = item.source.is_some() && target.present.get(&item.id) == Some(&item.source);
            let before = match stored.as_ref().filter(|_| known).map(|collection| collection.get(&item.id)) {
                // A damaged item is stored anew.
                Some(Err(_)) if args.force => None,
                found => found.transpose()?.map(|stored| stored.item),
            };
            // The table does not have the pixels.
            let item = Item { fingerprint: before.as_ref().and_then(|before| before.fingerprint.clone()), ..item };
            if before.as_ref() == Some(&item) && !args.force {
                target.counts.unchanged += 1;
                continue;
            }
            // A picture that is stored already keeps its thumbnail.
            let thumbnail = stored.as_ref().filter(|_| known).and_then(|collection| collection.thumbnail(&item.id).ok());
            items.push(NewItem { item, vector, thumbnail, patches: None });
        }
        target.store(items)?;
    }
    progress.finish_and_clear();
    target.finish(file)
}

/// Refuses vectors that no collection of this model can hold.
fn check(args: &Args, file: &Path, header: &Header) -> anyhow::Result<()> {
    let file = file.display();
    anyhow::ensure!(
        header.pooling == Pooling::Cls,
        "{file} holds vectors of pooling {}, and collections take {}: embed again with --pooling cls",
        header.pooling,
        Pooling::Cls
    );
    anyhow::ensure!(
        matches!(header.dtype, Dtype::F32 | Dtype::F16),
        "{file} holds vectors as {}, and collections take f32 or f16: embed again with --dtype f32",
        header.dtype
    );
    if let Some(path) = &args.model {
        let wanted = open_model(path, args.precision)?.fingerprint(Pooling::Cls);
        anyhow::ensure!(
            wanted == header.fingerprint,
            "{file} holds vectors of the model {}, not of {} ({wanted}): give that model, or --embed to embed the pictures with this one",
            header.fingerprint,
            path,
        );
    }
    Ok(())
}
