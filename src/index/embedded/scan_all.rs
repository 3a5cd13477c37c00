//! Every item of a layout with its vector.

use super::layout::Layout;
use super::{Error, Filter, VectorFormat, VisitVector};
use dino_vision::cancel;

/// Vectors that are read from the disk at once, where memory holds them as bytes, and rows between two looks at whether the request has
/// ended.
const PART: usize = 256;

/// Reads vectors by id and sequence number; none of an item that was replaced meanwhile.
type ReadVectors<'a> = dyn Fn(&[(&str, u64)]) -> Result<Vec<Option<Vec<f32>>>, Error> + 'a;

/// Hands each item that passes `filter` to `visit`.
pub(super) fn scan_all(layout: &Layout, filter: Option<&Filter>, read: &ReadVectors<'_>, visit: &mut VisitVector<'_>) -> Result<(), Error> {
    for segment in &layout.0 {
        let rows = &segment.rows;
        let passing: Vec<usize> = segment.live_rows().filter(|&row| filter.is_none_or(|filter| filter.passes(&rows.items[row]))).collect();
        for part in passing.chunks(PART) {
            cancel::check()?;
            if rows.kind() == VectorFormat::F32 {
                part.iter().try_for_each(|&row| visit(&rows.items[row], rows.vector(row)))?;
                continue;
            }
            let wanted: Vec<(&str, u64)> = part.iter().map(|&row| (rows.items[row].id.as_str(), rows.sequences[row])).collect();
            for (&row, vector) in part.iter().zip(read(&wanted)?) {
                vector.map_or(Ok(()), |vector| visit(&rows.items[row], &vector))?;
            }
        }
    }
    Ok(())
}
