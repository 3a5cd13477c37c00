//! Random numbers of a batch that depend on its pictures alone, or on its step: not on the process that has them, nor on their neighbours.
//!
//! ```
//! use dino_train::backbone::parameters::Random as _;
//! use dino_train::{data::loader::generator, run::random::PerPicture};
//!
//! // Of a batch of pictures 3 and 8, and of one of picture 8 alone.
//! let of = |picture| generator(0, 1, 0, picture);
//! let step = generator(0, 2, 0, 5);
//! let (mut both, mut one) = (PerPicture::new([of(3), of(8)], step.clone()), PerPicture::new([of(8)], step));
//! let (_, eighth) = (both.normal(), both.normal());
//! assert_eq!(eighth, one.normal());
//! assert_eq!(both.shared(), one.shared());
//! ```

use rand_chacha::ChaCha8Rng;

use crate::backbone::parameters::Random;

/// Draws for the pictures of a batch in turn, each from a generator of its own.
///
/// Networks draw for all crops, view by view, so that number n of the draws is for picture `n mod pictures`.
#[derive(Clone, Debug)]
pub struct PerPicture {
    generators: Vec<ChaCha8Rng>,
    next: usize,
    of_step: ChaCha8Rng,
}

impl PerPicture {
    /// One generator for each picture of a batch, in order, and one for what is the same for all pictures of a step.
    ///
    /// # Panics
    /// Without pictures.
    pub fn new(generators: impl IntoIterator<Item = ChaCha8Rng>, of_step: ChaCha8Rng) -> Self {
        let generators: Vec<_> = generators.into_iter().collect();
        assert!(!generators.is_empty(), "a batch has pictures");
        Self { generators, next: 0, of_step }
    }

    fn turn(&mut self) -> &mut ChaCha8Rng {
        let turn = self.next;
        self.next = (turn + 1) % self.generators.len();
        &mut self.generators[turn]
    }
}

impl Random for PerPicture {
    fn normal(&mut self) -> f32 {
        self.turn().normal()
    }

    fn uniform(&mut self) -> f32 {
        self.turn().uniform()
    }

    fn shared(&mut self) -> f32 {
        self.of_step.uniform()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::loader::generator;

    #[test]
    fn two_halves_draw_what_the_whole_draws() {
        let batch = |pictures: std::ops::Range<u64>| PerPicture::new(pictures.map(|i| generator(1, 2, 3, i)), generator(1, 3, 3, 0));
        let (mut whole, mut left, mut right) = (batch(0..4), batch(0..2), batch(2..4));
        for _view in 0..3 {
            let want: Vec<f32> = (0..4).map(|_| whole.uniform()).collect();
            let got = [left.uniform(), left.uniform(), right.uniform(), right.uniform()];
            assert_eq!(want, got);
            let shared = whole.shared();
            assert_eq!((left.shared(), right.shared()), (shared, shared));
        }
    }
}
