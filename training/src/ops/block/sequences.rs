//! Sequences of tokens packed into one matrix of rows, and how cores share them.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};

use super::Tokens;

/// Rows of one chunk: the widest intermediate of a ViT-S (1536 columns) then fits a 2 MB cache.
const CHUNK_ROWS: usize = 256;

/// Sequences packed into one matrix of rows: runs of (number of sequences, tokens in each).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences(pub Vec<(usize, usize)>);

impl Sequences {
    /// Total rows.
    pub fn rows(&self) -> usize {
        self.0.iter().map(|(n, tokens)| n * tokens).sum()
    }

    /// Total sequences.
    pub fn count(&self) -> usize {
        self.0.iter().map(|(n, _)| n).sum()
    }

    /// Sequences of each run, their tokens, and how many of these a block puts out.
    fn runs(&self, output: Tokens) -> impl Iterator<Item = (usize, usize, usize)> {
        self.0.iter().enumerate().map(move |(run, &(n, tokens))| (n, tokens, output.of(run, tokens)))
    }

    /// Rows that a block puts out.
    pub(super) fn rows_out(&self, output: Tokens) -> usize {
        self.runs(output).map(|(n, _, queries)| n * queries).sum()
    }

    /// The rows that a block puts out, of all rows.
    pub(super) fn select(&self, rows: &Tensor, output: Tokens) -> Result<Tensor> {
        if output == Tokens::All {
            return Ok(rows.clone());
        }
        self.by_run(rows, output, |tokens, _| tokens, |run, _, queries| run.narrow(1, 0, queries))
    }

    /// All rows, zero but for those that a block puts out.
    #[cfg(any(feature = "cuda", test))]
    pub(super) fn spread(&self, rows: &Tensor, output: Tokens) -> Result<Tensor> {
        if output == Tokens::All {
            return Ok(rows.clone());
        }
        self.by_run(rows, output, |_, queries| queries, |run, tokens, queries| run.pad_with_zeros(1, 0, tokens - queries))
    }

    /// Rows, of which each sequence has as many as `length` says, as `change` makes them out of those of a run, `[sequences, length, columns]`.
    fn by_run(
        &self,
        rows: &Tensor,
        output: Tokens,
        length: fn(usize, usize) -> usize,
        change: impl Fn(&Tensor, usize, usize) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (mut row, mut parts) = (0, Vec::with_capacity(self.0.len()));
        for (n, tokens, queries) in self.runs(output) {
            let length = length(tokens, queries);
            let run = rows.narrow(0, row, n * length)?.reshape((n, length, ()))?;
            parts.push(change(&run, tokens, queries)?.contiguous()?.flatten(0, 1)?);
            row += n * length;
        }
        if parts.len() == 1 { Ok(parts.swap_remove(0)) } else { Tensor::cat(&parts, 0) }
    }

    /// Of the rows that a block puts out, each sequence's first.
    pub fn first_rows(&self, output: Tokens) -> Vec<u32> {
        let mut row = 0;
        let mut rows = Vec::with_capacity(self.count());
        for (n, _, queries) in self.runs(output) {
            for _ in 0..n {
                rows.push(row);
                row += queries as u32;
            }
        }
        rows
    }

    /// A number of each sequence, for each of its rows that a block puts out: `[rows, 1]`. Numbers of sequences alone are copied to the
    /// device: a small copy, which does not wait for it.
    pub(super) fn per_row(&self, per_sequence: &[f32], output: Tokens, device: &Device) -> Result<Tensor> {
        let all = Tensor::from_slice(per_sequence, (self.count(), 1), device)?;
        self.by_run(&all, output, |_, _| 1, |run, _, queries| run.broadcast_as((run.dim(0)?, queries, 1)))
    }

    /// Cuts all sequences into chunks, in the order of their rows, and deals them out to `tasks` that take about equally long. A sequence
    /// costs what `cost` says of its tokens and of how many of these come out.
    pub(super) fn tasks(&self, tasks: usize, output: Tokens, cost: impl Fn(usize, usize) -> usize) -> Vec<Task> {
        let (mut shares, mut costs) = (vec![Task::default(); tasks.max(1)], vec![0; tasks.max(1)]);
        let (mut first_row, mut first_row_out, mut sequence, mut index) = (0, 0, 0, 0);
        for (run, (n, tokens, queries)) in self.runs(output).enumerate() {
            // As many for each task, where there are enough sequences, and none much larger than another.
            let least = n.div_ceil((CHUNK_ROWS / tokens.max(1)).max(1));
            let chunks = least.next_multiple_of(shares.len()).min(n);
            for chunk in 0..chunks {
                let sequences = sequence + n * chunk / chunks..sequence + n * (chunk + 1) / chunks;
                let sequences_of_chunk = sequences.len();
                let task = costs.iter().enumerate().min_by_key(|(_, cost)| **cost).map_or(0, |(task, _)| task);
                shares[task].chunks.push(Chunk { index, first_row, first_row_out, sequences, tokens, queries, run });
                first_row += sequences_of_chunk * tokens;
                first_row_out += sequences_of_chunk * queries;
                costs[task] += sequences_of_chunk * cost(tokens, queries);
                index += 1;
            }
            sequence += n;
        }
        shares.retain(|share| !share.chunks.is_empty());
        shares
    }
}

/// What one core does.
#[derive(Clone, Debug, Default)]
pub(super) struct Task {
    pub(super) chunks: Vec<Chunk>,
}

impl Task {
    /// All chunks of some tasks, in the order of their rows.
    pub(super) fn in_order(tasks: &[Self]) -> Vec<&Chunk> {
        let mut chunks: Vec<&Chunk> = tasks.iter().flat_map(|task| &task.chunks).collect();
        chunks.sort_by_key(|chunk| chunk.index);
        chunks
    }

    /// What belongs to the chunks, in the order of their rows, dealt out to the tasks.
    pub(super) fn deal<T>(tasks: &[Self], of_chunks: impl IntoIterator<Item = T>) -> Vec<Vec<T>> {
        let mut of_chunks: Vec<Option<T>> = of_chunks.into_iter().map(Some).collect();
        let mut take = |chunk: &Chunk| of_chunks.get_mut(chunk.index).and_then(Option::take);
        tasks.iter().map(|task| task.chunks.iter().filter_map(&mut take).collect()).collect()
    }
}

/// Consecutive sequences of equal length.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    /// Its place in the order of rows.
    pub(super) index: usize,
    pub(super) first_row: usize,
    first_row_out: usize,
    pub(super) sequences: Range<usize>,
    pub(super) tokens: usize,
    /// How many tokens of each sequence come out.
    pub(super) queries: usize,
    /// Which run of sequences they are of.
    pub(super) run: usize,
}

impl Chunk {
    pub(super) fn rows(&self) -> usize {
        self.sequences.len() * self.tokens
    }

    pub(super) fn rows_out(&self) -> usize {
        self.sequences.len() * self.queries
    }

    /// Its rows of a matrix of all rows.
    pub(super) fn of<'a>(&self, values: &'a [f32], columns: usize) -> &'a [f32] {
        &values[self.first_row * columns..(self.first_row + self.rows()) * columns]
    }

    /// Its rows of a matrix of the rows that come out.
    pub(super) fn of_out<'a>(&self, values: &'a [f32], columns: usize) -> &'a [f32] {
        &values[self.first_row_out * columns..(self.first_row_out + self.rows_out()) * columns]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_cover_every_row_once() {
        for sequences in [vec![(1, 1)], vec![(64, 37), (128, 10)], vec![(3, 400)], vec![(1, 2), (5, 1)]] {
            let sequences = Sequences(sequences);
            for tasks in 1..6 {
                let shares = sequences.tasks(tasks, Tokens::AllOfFirstRun, |_, _| 1);
                let (mut row, mut row_out, mut sequence) = (0, 0, 0);
                for (index, chunk) in Task::in_order(&shares).into_iter().enumerate() {
                    assert_eq!((chunk.index, chunk.first_row, chunk.sequences.start), (index, row, sequence));
                    assert_eq!(chunk.first_row_out, row_out);
                    row_out += chunk.rows_out();
                    sequence = chunk.sequences.end;
                    row += chunk.rows();
                }
                assert_eq!((row, sequence), (sequences.rows(), sequences.count()));
                assert_eq!(row_out, sequences.rows_out(Tokens::AllOfFirstRun));
                let dealt = Task::deal(&shares, Task::in_order(&shares).iter().map(|chunk| chunk.index));
                for (share, dealt) in shares.iter().zip(dealt) {
                    assert_eq!(share.chunks.iter().map(|chunk| chunk.index).collect::<Vec<_>>(), dealt);
                }
            }
        }
    }

    #[test]
    fn tasks_cost_about_the_same() {
        // Two large and eight small crops of four pictures: a row of a long sequence costs more, and one that does not come out less.
        let (sequences, cost) = (Sequences(vec![(8, 197), (32, 37)]), |tokens, queries| tokens * 300 + queries * (700 + tokens));
        for (output, tasks) in [(Tokens::All, 2), (Tokens::All, 4), (Tokens::First, 2), (Tokens::AllOfFirstRun, 4)] {
            let shares = sequences.tasks(tasks, output, cost);
            let of = |chunk: &Chunk| chunk.sequences.len() * cost(chunk.tokens, chunk.queries);
            let costs: Vec<usize> = shares.iter().map(|share| share.chunks.iter().map(of).sum()).collect();
            assert_eq!(costs.len(), tasks);
            assert!(costs.iter().max() <= costs.iter().min().map(|least| least * 11 / 10).as_ref(), "{costs:?}");
        }
    }
}
