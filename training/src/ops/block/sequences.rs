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

    /// Rows that a block puts out.
    pub(super) fn rows_out(&self, output: Tokens) -> usize {
        self.0.iter().map(|&(n, tokens)| n * output.of(tokens)).sum()
    }

    /// Row of each sequence's first token.
    pub fn first_rows(&self) -> Vec<u32> {
        let mut row = 0;
        let mut rows = Vec::with_capacity(self.count());
        for &(n, tokens) in &self.0 {
            for _ in 0..n {
                rows.push(row);
                row += tokens as u32;
            }
        }
        rows
    }

    /// A number of each sequence, for each of its rows that a block puts out: `[rows, 1]`.
    pub(super) fn per_row(&self, per_sequence: &[f32], output: Tokens, device: &Device) -> Result<Tensor> {
        let mut values = Vec::with_capacity(self.rows_out(output));
        let mut at = per_sequence.iter();
        for &(n, tokens) in &self.0 {
            for value in at.by_ref().take(n) {
                values.extend(std::iter::repeat_n(*value, output.of(tokens)));
            }
        }
        Tensor::from_vec(values, (self.rows_out(output), 1), device)
    }

    /// Cuts all sequences into chunks and shares those between `tasks`, by rows.
    pub(super) fn tasks(&self, tasks: usize) -> Vec<Task> {
        let goal = self.rows().div_ceil(tasks.max(1)).max(1);
        // Small enough that no task gets much more than its share.
        let most = CHUNK_ROWS.min(goal.div_ceil(4));
        let (mut shares, mut done, mut sequence) = (vec![Task::default(); tasks.max(1)], 0, 0);
        for (run, &(n, tokens)) in self.0.iter().enumerate() {
            let at_once = (most / tokens.max(1)).max(1);
            for from in (0..n).step_by(at_once) {
                let sequences = at_once.min(n - from);
                let rows = sequences * tokens;
                let task = ((done + rows / 2) / goal).min(shares.len() - 1);
                let share = &mut shares[task];
                if share.chunks.is_empty() {
                    share.first_row = done;
                }
                share.chunks.push(Chunk { sequences: sequence..sequence + sequences, tokens, run });
                done += rows;
                sequence += sequences;
            }
        }
        shares.retain(|share| !share.chunks.is_empty());
        shares
    }
}

/// What one core does.
#[derive(Clone, Debug, Default)]
pub(super) struct Task {
    pub(super) first_row: usize,
    pub(super) chunks: Vec<Chunk>,
}

impl Task {
    pub(super) fn rows(&self) -> usize {
        self.chunks.iter().map(Chunk::rows).sum()
    }

    pub(super) fn rows_out(&self, output: Tokens) -> usize {
        self.chunks.iter().map(|chunk| chunk.rows_out(output)).sum()
    }

    pub(super) fn first_row_out(&self, output: Tokens) -> usize {
        match output {
            Tokens::All => self.first_row,
            Tokens::First => self.chunks.first().map_or(0, |chunk| chunk.sequences.start),
        }
    }
}

/// Consecutive sequences of equal length.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub(super) sequences: Range<usize>,
    pub(super) tokens: usize,
    /// Which run of sequences they are of.
    pub(super) run: usize,
}

impl Chunk {
    pub(super) fn rows(&self) -> usize {
        self.sequences.len() * self.tokens
    }

    pub(super) fn rows_out(&self, output: Tokens) -> usize {
        self.sequences.len() * output.of(self.tokens)
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
                let shares = sequences.tasks(tasks);
                let (mut row, mut sequence) = (0, 0);
                for task in &shares {
                    assert_eq!(task.first_row, row);
                    for chunk in &task.chunks {
                        assert_eq!(chunk.sequences.start, sequence);
                        sequence = chunk.sequences.end;
                    }
                    row += task.rows();
                }
                assert_eq!((row, sequence), (sequences.rows(), sequences.count()));
            }
        }
    }
}
