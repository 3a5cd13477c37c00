//! Linear heads for segmentation and depth beside PyTorch's on the same features (`reference/dense.py`).
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::iter::zip;
use std::path::Path;
use std::sync::Arc;

use bytemuck::Pod;
use dino_train::evaluate::dense::depth::Depth;
use dino_train::evaluate::dense::figures::{Confusion, DepthFigures};
use dino_train::evaluate::dense::segmentation::Segmentation;
use dino_train::evaluate::dense::{Example, Objective, Probe, schedule, step};
use dino_vision::dense::depth::Depths;
use dino_vision::dense::enlarge::Enlargement;
use dino_vision::dense::segmentation::ClassMap;
use dino_vision::head::DepthRange;
use dino_vision::transform::PatchGrid;
use ndarray::{Array1, Array2, Array3, ArrayD, Axis, IxDyn};
use safetensors::SafeTensors;

const STEPS: usize = 4;
const WARMUP: usize = 2;
const RANGE: DepthRange = DepthRange { min: 0.001, max: 10.0 };

struct Reference {
    file: Vec<u8>,
    task: &'static str,
}

impl Reference {
    fn open(task: &'static str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/dense.safetensors");
        Self { file: fs_err::read(path).unwrap(), task }
    }

    fn metadata(&self, key: &str) -> f64 {
        let (_, header) = SafeTensors::read_metadata(&self.file).unwrap();
        header.metadata().as_ref().unwrap()[key].parse().unwrap()
    }

    fn grid(&self) -> PatchGrid {
        PatchGrid { rows: self.metadata("rows") as usize, columns: self.metadata("columns") as usize }
    }

    fn floats(&self, name: &str) -> ArrayD<f32> {
        let tensors = SafeTensors::deserialize(&self.file).unwrap();
        let tensor = tensors.tensor(&format!("{}.{name}", self.task)).unwrap();
        let numbers = tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        ArrayD::from_shape_vec(IxDyn(tensor.shape()), numbers).unwrap()
    }

    /// A parameter as a matrix; a convolution's 1x1 window is left out.
    fn weight(&self, name: &str) -> Array2<f32> {
        let weight = self.floats(name);
        let shape = (weight.shape()[0], weight.shape()[1]);
        weight.into_shape_with_order(shape).unwrap()
    }

    fn vector(&self, name: &str) -> Array1<f32> {
        self.floats(name).into_dimensionality().unwrap()
    }

    fn examples<L: Pod>(&self, labels: &str, convert: impl Fn(f32) -> L) -> Vec<Example<L>> {
        let features: Array3<f32> = self.floats("features").into_dimensionality().unwrap();
        let labels: Array3<f32> = self.floats(labels).into_dimensionality().unwrap();
        let size = PatchGrid { rows: labels.len_of(Axis(1)), columns: labels.len_of(Axis(2)) };
        let example = |(features, labels): (ndarray::ArrayView2<'_, f32>, ndarray::ArrayView2<'_, f32>)| Example {
            features: Arc::new(features.to_owned()),
            grid: self.grid(),
            labels: labels.iter().map(|label| convert(*label)).collect(),
            size,
        };
        zip(features.outer_iter(), labels.outer_iter()).map(example).collect()
    }

    fn probe(&self, decay: f64) -> Probe {
        let norm = (self.task == "segmentation").then(|| (self.vector("first.norm.weight"), self.vector("first.norm.bias")));
        Probe::from_weights(self.weight("first.weight"), self.vector("first.bias"), norm, self.metadata("lr"), decay)
    }
}

fn difference<'a>(found: impl IntoIterator<Item = &'a f32>, expected: &ArrayD<f32>) -> f32 {
    let found: Vec<f32> = found.into_iter().copied().collect();
    assert_eq!(found.len(), expected.len());
    zip(found, expected).map(|(found, expected)| (found - expected).abs() / expected.abs().max(1.0)).fold(0.0, f32::max)
}

fn assert_close<'a>(found: impl IntoIterator<Item = &'a f32>, expected: &ArrayD<f32>, what: &str) {
    let largest = difference(found, expected);
    assert!(largest < 1e-4, "{what}: {largest}");
}

/// Trains a head as the script does; the losses.
fn train<O: Objective>(objective: &O, probe: &mut Probe, batch: &[Example<O::Label>]) -> Vec<f32> {
    let share = |number| schedule::share(number, STEPS, WARMUP);
    (0..STEPS).map(|number| step(objective, std::slice::from_mut(probe), batch, number, share(number))[0] as f32).collect()
}

/// Gradients of the convolution's bias and weight, of a head without norm or on normalised features.
fn of_convolution(inputs: &[Array2<f32>], gradients: &[Array2<f32>]) -> (Array2<f32>, Array1<f32>) {
    let weight = zip(inputs, gradients).map(|(input, gradient)| gradient.t().dot(input)).reduce(|sum, part| sum + part).unwrap();
    (weight, gradients.iter().map(|gradient| gradient.sum_axis(Axis(0))).reduce(|sum, part| sum + part).unwrap())
}

#[test]
fn segmentation_is_learnt_as_pytorch_learns_it() {
    let reference = Reference::open("segmentation");
    let batch = reference.examples("labels", |label| label as u8);
    let mut probe = reference.probe(1e-4);
    let (weight, bias) = probe.in_training();
    let views: Vec<_> = batch.iter().map(|example| example.features.view()).collect();
    let statistics = dino_train::evaluate::dense::Statistics::of(&views);
    let inputs: Vec<Array2<f32>> = views.iter().map(|features| statistics.normalise(*features)).collect();
    let logits: Vec<Array2<f32>> = inputs.iter().map(|input| input.dot(&weight.t()) + &bias).collect();
    assert_close(logits.iter().flatten(), &reference.floats("logits"), "logits");
    let enlarged = Enlargement::new(reference.grid(), batch[0].size).apply(logits[0].as_slice().unwrap(), bias.len());
    assert_close(&enlarged, &reference.floats("enlarged"), "enlarged logits");

    let (loss, gradients) = Segmentation.loss(&logits, &batch, 0);
    let (of_weight, of_bias) = of_convolution(&inputs, &gradients);
    let norm = probe.norm.clone().unwrap();
    let of_norm = (&probe.weight * &of_weight).sum_axis(Axis(0));
    assert_close(&of_bias, &reference.floats("gradient.bias"), "gradient of the bias");
    assert_close(&of_norm, &reference.floats("gradient.norm.weight"), "gradient of the norm's weight");
    assert_close(&of_bias.dot(&probe.weight), &reference.floats("gradient.norm.bias"), "gradient of the norm's bias");
    let outer = of_bias.view().insert_axis(Axis(1)).dot(&norm.bias.view().insert_axis(Axis(0)));
    assert_close(&(of_weight * &norm.weight + outer), &reference.floats("gradient.weight"), "gradient of the weight");

    let losses = train(&Segmentation, &mut probe, &batch);
    assert!((f64::from(losses[0]) - loss).abs() < 1e-6);
    assert_close(&losses, &reference.floats("losses"), "losses");
    let norm = probe.norm.as_ref().unwrap();
    for (name, values) in [("weight", probe.weight.flatten()), ("bias", probe.bias.flatten())] {
        assert_close(&values, &reference.floats(&format!("last.{name}")), name);
    }
    assert_close(&norm.weight, &reference.floats("last.norm.weight"), "the norm's weight");
    assert_close(&norm.bias, &reference.floats("last.norm.bias"), "the norm's bias");

    let (weight, bias) = probe.served();
    let served: Vec<Array2<f32>> = views.iter().map(|features| features.dot(&weight.t()) + &bias).collect();
    assert_close(served.iter().flatten(), &reference.floats("served"), "logits with running statistics");
    let mut confusion = Confusion::new(bias.len());
    let answers = reference.floats("answer");
    for ((logits, example), answer) in zip(zip(&served, &batch), answers.outer_iter()) {
        let map = ClassMap::new(logits.view(), example.grid, example.size);
        assert!(zip(&map.classes, &answer).all(|(found, expected)| *found == *expected as u8), "answers");
        confusion.add(&example.labels, &map.classes);
    }
    let figures = confusion.figures();
    let iou: Vec<f32> = figures.iou.iter().map(|iou| iou.unwrap() as f32 / 100.0).collect();
    assert_close(&iou, &reference.floats("iou"), "intersections over unions");
    assert_close(&[figures.accuracy as f32 / 100.0], &reference.floats("accuracy"), "accuracy");
}

#[test]
fn depth_is_learnt_as_pytorch_learns_it() {
    let reference = Reference::open("depth");
    let batch = reference.examples("truth", |depth| depth);
    let mut probe = reference.probe(1e-2);
    let logits: Vec<Array2<f32>> = batch.iter().map(|example| example.features.dot(&probe.weight.t()) + &probe.bias).collect();
    let fine: Vec<Depths> = logits.iter().map(|logits| Depths::new(logits.view(), reference.grid(), RANGE)).collect();
    assert_close(fine.iter().flat_map(|depths| &depths.values), &reference.floats("fine"), "depths on the fine grid");
    let sizes: Vec<PatchGrid> = batch.iter().map(|example| example.size).collect();
    let found: Vec<Vec<f32>> = zip(&fine, &sizes).map(|(depths, size)| depths.enlarged(*size).values).collect();
    assert_close(found.iter().flatten(), &reference.floats("enlarged"), "depths");

    let depth = Depth { range: RANGE, warmup: 1 };
    let truth: Vec<&[f32]> = batch.iter().map(|example| &example.labels[..]).collect();
    for (name, loss) in [
        ("sigloss", depth.scale_invariant(&found, &truth, false).0),
        ("warmup", depth.scale_invariant(&found, &truth, true).0),
        ("gradient_loss", depth.gradient(&found, &truth, &sizes).0),
    ] {
        assert_close(&[loss as f32], &reference.floats(name), name);
    }
    let inputs: Vec<Array2<f32>> = batch.iter().map(|example| (*example.features).clone()).collect();
    let (of_weight, of_bias) = of_convolution(&inputs, &depth.loss(&logits, &batch, 0).1);
    assert_close(&of_weight, &reference.floats("gradient.weight"), "gradient of the weight");
    assert_close(&of_bias, &reference.floats("gradient.bias"), "gradient of the bias");
    // Another step has another loss: the comparison can fail.
    assert!(difference(&of_convolution(&inputs, &depth.loss(&logits, &batch, 1).1).1, &reference.floats("gradient.bias")) > 1e-3);

    assert_close(&train(&depth, &mut probe, &batch), &reference.floats("losses"), "losses");
    assert_close(&probe.weight, &reference.floats("last.weight"), "weight");
    assert_close(&probe.bias, &reference.floats("last.bias"), "bias");

    let served = |example: &Example<f32>| {
        let logits = example.features.dot(&probe.weight.t()) + &probe.bias;
        Depths::new(logits.view(), example.grid, RANGE).enlarged(example.size).values
    };
    let answers: Vec<Vec<f32>> = batch.iter().map(served).collect();
    assert_close(answers.iter().flatten(), &reference.floats("served"), "depths after training");
    let figures: Vec<DepthFigures> = zip(&answers, &truth).filter_map(|(answer, truth)| DepthFigures::of(truth, answer, RANGE)).collect();
    let DepthFigures { abs_rel, rmse, delta1, delta2, delta3 } = DepthFigures::mean(&figures).unwrap();
    let found = [abs_rel, rmse, delta1, delta2, delta3].map(|figure| figure as f32);
    assert_close(&found, &reference.floats("figures"), "figures");
}
