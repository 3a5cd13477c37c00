//! Named parameters, stored in groups: each group is one flat candle variable.
//!
//! One variable for a whole transformer block lets its fused operator take all weights as one argument, and lets
//! the optimiser, the moving average and an exchange between processes pass over few long buffers instead of many short ones.
//!
//! ```
//! use candle_core::Device;
//! use dino_train::backbone::parameters::{Group, Init};
//! use dino_train::data::loader::generator;
//!
//! let parameters = vec![
//!     ("norm.weight".to_owned(), vec![3], Init::Constant(1.0)),
//!     ("norm.bias".to_owned(), vec![3], Init::Constant(0.0)),
//! ];
//! let group = Group::new(parameters, &mut generator(0, 0, 0, 0), &Device::Cpu)?;
//! assert_eq!(group.flat(false).to_vec1::<f32>()?, [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
//! assert_eq!((group.entries()[1].offset, group.entries()[1].decays()), (3, false));
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{Device, Result, Tensor, Var};

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All elements the same.
    Constant(f32),
    /// Normal with this deviation, redrawn outside of ±2 (the public code's `trunc_normal_`: the bounds are absolute, so in effect none).
    Normal(f32),
    /// Uniform in ± this bound.
    Uniform(f32),
}

/// One named parameter inside a group.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Full name, as in the public checkpoints, for example `backbone.blocks.0.attn.qkv.weight`.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// First element in the flat variable.
    pub offset: usize,
    /// Initial values.
    pub init: Init,
}

impl Entry {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The public code applies weight decay to all but biases and one-dimensional parameters.
    pub fn decays(&self) -> bool {
        self.shape.len() > 1 && !self.name.ends_with(".bias")
    }
}

/// Parameters that lie one after another in one flat variable.
#[derive(Clone, Debug)]
pub struct Group {
    var: Var,
    entries: Vec<Entry>,
}

impl Group {
    /// Lays out `parameters` in order, and fills them by their `Init` through `draw` (standard normal, or uniform in -1..1).
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(parameters: Vec<(String, Vec<usize>, Init)>, random: &mut impl Random, device: &Device) -> Result<Self> {
        let mut entries = Vec::with_capacity(parameters.len());
        let mut values = Vec::new();
        for (name, shape, init) in parameters {
            let entry = Entry { name, shape, offset: values.len(), init };
            let draw = || match init {
                Init::Constant(value) => value,
                Init::Normal(deviation) => loop {
                    let value = deviation * random.normal();
                    if value.abs() <= 2.0 {
                        break value;
                    }
                },
                Init::Uniform(bound) => bound * random.uniform(),
            };
            values.extend(std::iter::repeat_with(draw).take(entry.len()));
            entries.push(entry);
        }
        let len = values.len();
        Ok(Self { var: Var::from_vec(values, len, device)?, entries })
    }

    /// The same layout and values in a variable of its own.
    ///
    /// # Errors
    /// When the device fails.
    pub fn duplicate(&self) -> Result<Self> {
        Ok(Self { var: Var::from_tensor(&self.var.copy()?)?, entries: self.entries.clone() })
    }

    /// [`Group::duplicate`] of each.
    ///
    /// # Errors
    /// When the device fails.
    pub fn duplicate_all(groups: &[Self]) -> Result<Vec<Self>> {
        groups.iter().map(Self::duplicate).collect()
    }

    /// The variable.
    pub fn var(&self) -> &Var {
        &self.var
    }

    /// The flat values: part of the graph when `track`, constants otherwise.
    pub fn flat(&self, track: bool) -> Tensor {
        if track { self.var.as_tensor().clone() } else { self.var.as_detached_tensor() }
    }

    /// Its parameters, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Parameter number `index` as a view into `flat`, in its shape.
    ///
    /// # Errors
    /// When the device fails, or the layout does not fit.
    pub fn view(&self, flat: &Tensor, index: usize) -> Result<Tensor> {
        let entry = &self.entries[index];
        flat.narrow(0, entry.offset, entry.len())?.reshape(entry.shape.as_slice())
    }

    /// Replaces the values of one parameter.
    ///
    /// # Errors
    /// When the device fails.
    pub fn set(&self, entry: &Entry, values: &[f32]) -> Result<()> {
        let mut flat = self.var.flatten_all()?.to_vec1::<f32>()?;
        flat[entry.offset..entry.offset + entry.len()].copy_from_slice(values);
        self.var.set(&Tensor::from_vec(flat, self.var.elem_count(), self.var.device())?)
    }
}

/// Source of initial values.
pub trait Random {
    /// Standard normal.
    fn normal(&mut self) -> f32;
    /// Uniform in -1..1.
    fn uniform(&mut self) -> f32;
    /// Uniform in -1..1, the same for all pictures of a step.
    fn shared(&mut self) -> f32 {
        self.uniform()
    }
}

impl<R: rand::Rng> Random for R {
    fn normal(&mut self) -> f32 {
        use rand::RngExt;
        self.sample(rand_distr::StandardNormal)
    }

    fn uniform(&mut self) -> f32 {
        use rand::RngExt;
        self.random_range(-1.0..1.0)
    }
}
