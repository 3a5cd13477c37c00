//! All items of a collection in the order of their ids, from all databases at once.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::super::super::item::StoredItem;
use super::super::super::store::Visit;
use super::super::super::{Attached, Collection, Damaged, Error};
use super::collection::Part;
use dino_vision::cancel;

/// Items of each database that wait for those of the others. Each may have a picture of some megabytes.
const WAITING: usize = 4;

/// An item and what is attached to it.
struct Exported {
    stored: StoredItem,
    picture: Option<Vec<u8>>,
    patches: Option<Vec<u8>>,
}

/// The next of a database: an item, or how its export ended.
enum Next {
    Item(Box<Exported>),
    End(Result<Vec<Damaged>, Error>),
}

/// Calls `visit` with every item of all parts, ordered by id. Returns those that cannot be read.
pub(super) fn in_order(parts: &[Part], visit: &mut Visit<'_>) -> Result<Vec<Damaged>, Error> {
    let token = cancel::current();
    thread::scope(|scope| {
        let mut channels = Vec::with_capacity(parts.len());
        for part in parts {
            // Where this function ends early, its end of the channel is gone, and the thread ends with its next item.
            let (sender, receiver) = sync_channel(WAITING);
            let token = token.clone();
            let work = move || cancel::scope(token, || send(part, &sender));
            thread::Builder::new().name("shard".to_owned()).spawn_scoped(scope, work)?;
            channels.push(receiver);
        }
        let mut damaged = Vec::new();
        let mut heads = Vec::with_capacity(channels.len());
        for channel in &channels {
            heads.push(next(channel, &mut damaged)?);
        }
        loop {
            let first = heads.iter().enumerate().filter_map(|(at, head)| Some((&head.as_ref()?.stored.item.id, at))).min();
            let Some((_, at)) = first else { break };
            if let Some(one) = heads[at].take() {
                visit(&one.stored, Attached { picture: one.picture.as_deref(), patches: one.patches.as_deref() })?;
            }
            heads[at] = next(&channels[at], &mut damaged)?;
        }
        damaged.sort_by(|a: &Damaged, b| a.id.cmp(&b.id));
        Ok(damaged)
    })
}

/// Exports one part into a channel.
fn send(part: &Part, channel: &SyncSender<Next>) {
    let ended = part.ask(|items| {
        items.export(&mut |stored, attached| {
            let (picture, patches) = (attached.picture.map(<[u8]>::to_vec), attached.patches.map(<[u8]>::to_vec));
            let one = Next::Item(Box::new(Exported { stored: stored.clone(), picture, patches }));
            channel.send(one).map_err(|_| io::Error::other("the export ended"))
        })
    });
    // Where the reader is gone, it knows why.
    let _ = channel.send(Next::End(ended));
}

/// The next item of a part; `None` after the last.
fn next(channel: &Receiver<Next>, damaged: &mut Vec<Damaged>) -> Result<Option<Box<Exported>>, Error> {
    match channel.recv() {
        Ok(Next::Item(one)) => Ok(Some(one)),
        Ok(Next::End(ended)) => {
            damaged.extend(ended?);
            Ok(None)
        }
        Err(_) => Err(io::Error::other("the thread that exports a part of the collection ended").into()),
    }
}
