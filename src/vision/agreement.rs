//! Whether a device computes what ONNX Runtime's CPU computes: drivers and compilers of graphs have returned other numbers without an
//! error, and every answer would be wrong with a status of 200.
//!
//! ```
//! use dino_vision::agreement::Reference;
//! use dino_vision::batch::{Engine, EngineError};
//! use dino_vision::model::{Model, Outputs, Precision};
//! use ndarray::{Array2, ArrayView4};
//!
//! /// Computes each picture's first two pixels, times a factor.
//! struct Device([f32; 2]);
//! impl Engine for Device {
//!     type Output = Outputs;
//!     fn run(&mut self, pictures: ArrayView4<'_, f32>) -> Result<Vec<Outputs>, EngineError> {
//!         let embedding = |picture: ndarray::ArrayView3<'_, f32>| Array2::from_shape_fn((1, 2), |(_, x)| picture[[0, 0, x]] * self.0[x]);
//!         Ok(pictures.outer_iter().map(|picture| Outputs { embedding: Some(embedding(picture)), ..Outputs::default() }).collect())
//!     }
//! }
//!
//! let model = Model::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/tiny-model").as_ref())?;
//! let reference = Reference::of(&mut Device([1.0, 1.0]), model.manifest(), (32, 32))?;
//! assert!(reference.compare(&mut Device([1.0, 1.001]), Precision::F32, 2)?.check().is_ok());
//! assert!(reference.compare(&mut Device([1.0, -1.0]), Precision::F32, 2)?.check().is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::borrow::Cow;

use image::{Rgb, RgbImage};
use ndarray::{Array4, ArrayViewD, Axis, stack};

use crate::batch::{Engine, EngineError};
use crate::model::{Manifest, Outputs, Precision};
use crate::unit_rows;

/// Cosines that f32 and bf16 have to reach. Rounding to bf16 costs 1e-4, a wrong layer 0.1 and more.
const LEAST: f64 = 0.999;
/// Those of f16 and int8, whose rounding differs from device to device.
const LEAST_NARROW: f64 = 0.99;
/// Lengths of a device's vectors, by those of the CPU: a cosine says nothing of them, and answers may be asked for as they are.
const LENGTHS: std::ops::RangeInclusive<f64> = 0.9..=1.1;

/// How near the outputs of a device are to those of ONNX Runtime's CPU, on the same pictures.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    outputs: Vec<OutputAgreement>,
    least: f64,
}

/// The same, of one output.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputAgreement {
    /// Name of the output.
    pub name: Cow<'static, str>,
    /// Lowest cosine over the pictures; of several vectors of a picture the mean, but CLS by itself. NaN where a number is not finite.
    pub cosine: f64,
    /// Length of the device's output by that of the CPU, of the picture where they differ most.
    pub length: f64,
}

/// A device that computes something else.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Disagreement {
    /// Numbers that are infinite, or none.
    #[error("gives numbers in `{output}` that are not finite")]
    NotFinite {
        /// Name of the output.
        output: Cow<'static, str>,
    },
    /// Vectors that point elsewhere.
    #[error("differs from ONNX Runtime's CPU: the cosine of their `{output}` is {cosine:.4} on the same picture, and {least} is needed")]
    Cosine {
        /// Name of the output.
        output: Cow<'static, str>,
        /// What was found.
        cosine: f64,
        /// What is needed.
        least: f64,
    },
    /// Vectors of another length.
    #[error("differs from ONNX Runtime's CPU: its `{output}` has {length:.3} times the length on the same picture")]
    Length {
        /// Name of the output.
        output: Cow<'static, str>,
        /// By that of the CPU.
        length: f64,
    },
}

/// Pictures, and what ONNX Runtime's CPU computes of them.
#[derive(Clone, Debug)]
pub struct Reference {
    pictures: Array4<f32>,
    outputs: Vec<Outputs>,
}

impl Reference {
    /// Runs `engine`, which is on ONNX Runtime's CPU, on two pictures of `height` x `width` pixels that the manifest's transform
    /// normalises.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn of<E: Engine<Output = Outputs>>(engine: &mut E, manifest: &Manifest, (height, width): (u32, u32)) -> Result<Self, EngineError> {
        let pictures = [waves(height, width), noise(height, width)].map(|picture| manifest.transform.normalise(&picture));
        let pictures =
            stack(Axis(0), &pictures.each_ref().map(|picture| picture.view())).map_err(|error| EngineError(error.to_string()))?;
        let outputs = run(engine, &pictures, 1)?;
        Ok(Self { pictures, outputs })
    }

    /// The pictures, `[2, 3, H, W]`.
    pub fn pictures(&self) -> &Array4<f32> {
        &self.pictures
    }

    /// Runs `engine` on the same pictures, at most `batch` at once.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn compare<E: Engine<Output = Outputs>>(
        &self,
        engine: &mut E,
        precision: Precision,
        batch: usize,
    ) -> Result<Agreement, EngineError> {
        let found = run(engine, &self.pictures, batch)?;
        let least = if precision == Precision::F32 { LEAST } else { LEAST_NARROW };
        let mut outputs: Vec<OutputAgreement> = Vec::new();
        for (expected, found) in self.outputs.iter().zip(&found) {
            for (name, expected) in expected.arrays() {
                let found = found.arrays().find(|(other, _)| *other == name).map(|(_, array)| array);
                let one = OutputAgreement::of(name, expected, found);
                match outputs.iter_mut().find(|output| output.name == one.name) {
                    Some(output) => output.worsen(&one),
                    None => outputs.push(one),
                }
            }
        }
        Ok(Agreement { outputs, least })
    }
}

fn run<E: Engine<Output = Outputs>>(engine: &mut E, pictures: &Array4<f32>, batch: usize) -> Result<Vec<Outputs>, EngineError> {
    let mut outputs = Vec::with_capacity(pictures.len_of(Axis(0)));
    for part in pictures.axis_chunks_iter(Axis(0), batch.clamp(1, pictures.len_of(Axis(0)))) {
        outputs.extend(engine.run(part)?);
    }
    Ok(outputs)
}

impl Agreement {
    /// The outputs of the graph, one by one.
    pub fn outputs(&self) -> &[OutputAgreement] {
        &self.outputs
    }

    /// The lowest cosine of all; NaN where one is.
    pub fn cosine(&self) -> f64 {
        self.outputs.iter().map(|output| output.cosine).fold(1.0, lower)
    }

    /// Whether the device may be used.
    ///
    /// # Errors
    /// [`Disagreement`] of the first output that differs.
    pub fn check(&self) -> Result<(), Disagreement> {
        for OutputAgreement { name, cosine, length } in &self.outputs {
            let (output, cosine, length) = (name.clone(), *cosine, *length);
            if !cosine.is_finite() {
                return Err(Disagreement::NotFinite { output });
            }
            if cosine < self.least {
                return Err(Disagreement::Cosine { output, cosine, least: self.least });
            }
            if !LENGTHS.contains(&length) {
                return Err(Disagreement::Length { output, length });
            }
        }
        Ok(())
    }
}

impl OutputAgreement {
    /// Compares an output of one picture with the CPU's.
    fn of(name: Cow<'static, str>, expected: ArrayViewD<'_, f32>, found: Option<ArrayViewD<'_, f32>>) -> Self {
        let Some(found) = found.filter(|found| found.shape() == expected.shape()) else {
            return Self { name, cosine: 0.0, length: 0.0 };
        };
        let cosine = if name.contains("hidden_state") {
            // CLS, which is most of what is asked for, must not hide among the patches; and tokens that are much longer than the
            // others, as artefacts in large models are, must not hide these.
            let cosines: Vec<_> =
                expected.rows().into_iter().zip(found.rows()).map(|(a, b)| cosine(&a.into_dyn(), &b.into_dyn())).collect();
            let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
            cosines.first().map_or(mean, |cls| lower(*cls, mean))
        } else {
            cosine(&expected, &found)
        };
        let (from, to) = (unit_rows::length(&expected), unit_rows::length(&found));
        let length = if from.total_cmp(&to).is_eq() { 1.0 } else { to / from };
        Self { name, cosine, length }
    }

    fn worsen(&mut self, other: &Self) {
        self.cosine = lower(self.cosine, other.cosine);
        let far = |length: f64| (length - 1.0).abs();
        if !far(other.length).is_finite() || far(other.length) > far(self.length) {
            self.length = other.length;
        }
    }
}

/// The lower of two numbers; NaN, where one is.
fn lower(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) }
}

fn cosine(a: &ArrayViewD<'_, f32>, b: &ArrayViewD<'_, f32>) -> f64 {
    let product: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    let (a, b) = (unit_rows::length(a), unit_rows::length(b));
    // Nothing, on both sides or on one.
    if a * b <= 0.0 { f64::from(u8::from(a <= 0.0 && b <= 0.0)) } else { product / (a * b) }
}

/// Waves in each channel, of another direction and length: smooth, and nowhere the same.
fn waves(height: u32, width: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (f64::from(x) / f64::from(width), f64::from(y) / f64::from(height));
        Rgb([(3.0, 5.0), (11.0, -4.0), (2.0, 17.0)].map(|(along, down)| (127.5 + 127.5 * (along * x + down * y).sin()).round() as u8))
    })
}

/// Noise of xorshift, in blocks of 4 pixels and brighter towards the right.
fn noise(height: u32, width: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let mut state = (x / 4).wrapping_mul(0x9e37_79b9) ^ (y / 4).wrapping_mul(0x85eb_ca6b) ^ 0x1234_5678;
        let shade = 96 * x / width;
        Rgb([0; 3].map(|_: u8| {
            for (left, by) in [(true, 13), (false, 17), (true, 5)] {
                state ^= if left { state << by } else { state >> by };
            }
            (shade + state % 160) as u8
        }))
    })
}

#[cfg(test)]
mod tests {
    use ndarray::{Array3, ArrayView4, s};

    use super::*;

    /// A device made up for the purpose: means of cells of the picture as tokens, changed by `change`.
    struct Fake<F>(F);

    impl<F: FnMut(&mut Array3<f32>) -> Result<(), EngineError> + Send + 'static> Engine for Fake<F> {
        type Output = Outputs;

        fn run(&mut self, pictures: ArrayView4<'_, f32>) -> Result<Vec<Outputs>, EngineError> {
            let one = |picture: ndarray::ArrayView3<'_, f32>| {
                let cells =
                    picture.exact_chunks((3, 8, 8)).into_iter().flat_map(|cell| [0, 2, 5].map(|row| cell.slice(s![.., row, ..]).sum()));
                let cells: Vec<f32> = cells.collect();
                let mut tokens = Array3::from_shape_vec((1, cells.len() / 6, 6), cells).unwrap();
                (self.0)(&mut tokens)?;
                Ok(Outputs { keys: Some(tokens.clone()), last_hidden_state: Some(tokens), ..Outputs::default() })
            };
            pictures.outer_iter().map(one).collect()
        }
    }

    fn compare(
        precision: Precision,
        change: impl FnMut(&mut Array3<f32>) -> Result<(), EngineError> + Send + 'static,
    ) -> Result<Agreement, EngineError> {
        let manifest = Manifest::load(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny-model")).unwrap();
        let reference = Reference::of(&mut Fake(|_: &mut Array3<f32>| Ok(())), &manifest, (32, 48)).unwrap();
        assert_eq!(reference.pictures().dim(), (2, 3, 32, 48));
        reference.compare(&mut Fake(change), precision, 2)
    }

    #[test]
    fn a_device_that_rounds_agrees_and_says_how_much() {
        let agreement = compare(Precision::F32, |tokens| {
            tokens.mapv_inplace(|value| half::bf16::from_f32(value).to_f32());
            Ok(())
        })
        .unwrap();
        assert!(agreement.check().is_ok() && agreement.cosine() > 0.9999 && agreement.cosine() < 1.0, "{agreement:?}");
        let names: Vec<_> = agreement.outputs().iter().map(|output| output.name.as_ref()).collect();
        assert_eq!(names, ["last_hidden_state", "keys"]);
    }

    #[test]
    fn a_wrong_device_is_refused_with_the_figure() {
        let refused = |precision, change: fn(&mut Array3<f32>)| {
            let agreement = compare(precision, move |tokens| {
                change(tokens);
                Ok(())
            });
            agreement.unwrap().check().unwrap_err()
        };
        // CLS alone, among many tokens that are right.
        let cls = |tokens: &mut Array3<f32>| tokens[[0, 0, 0]] += 30.0;
        let said = refused(Precision::F32, cls).to_string();
        assert!(said.contains("`last_hidden_state` is 0.") && said.contains("0.999 is needed"), "{said}");
        let twice = |tokens: &mut Array3<f32>| *tokens *= 2.0;
        assert!(matches!(refused(Precision::Int8, twice), Disagreement::Length { length, .. } if (length - 2.0).abs() < 1e-6));
        let nothing = |tokens: &mut Array3<f32>| tokens.fill(0.0);
        assert!(matches!(refused(Precision::F16, nothing), Disagreement::Cosine { cosine: 0.0, least: LEAST_NARROW, .. }));
        let shorter = |tokens: &mut Array3<f32>| *tokens = tokens.slice(s![.., 1.., ..]).to_owned();
        assert!(matches!(refused(Precision::F32, shorter), Disagreement::Cosine { cosine: 0.0, .. }));
        for value in [f32::NAN, f32::INFINITY] {
            let agreement = compare(Precision::F32, move |tokens| {
                tokens[[0, 3, 1]] = value;
                Ok(())
            });
            assert_eq!(agreement.unwrap().check(), Err(Disagreement::NotFinite { output: "last_hidden_state".into() }));
        }
    }

    #[test]
    fn narrow_numbers_may_differ_by_more() {
        let noisy = |tokens: &mut Array3<f32>| {
            let mut sign = 1.0;
            tokens.mapv_inplace(|value| {
                sign = -sign;
                value * (1.0 + 0.08 * sign)
            });
            Ok(())
        };
        assert!(compare(Precision::F32, noisy).unwrap().check().is_err());
        assert!(compare(Precision::Int8, noisy).unwrap().check().is_ok());
    }

    #[test]
    fn a_device_that_fails_says_so() {
        let error = compare(Precision::F32, |_| Err(EngineError("the device is gone".into()))).unwrap_err();
        assert_eq!(error.0, "the device is gone");
    }
}
