//! Small fused operators against candle's own, with their gradients; candle's fused layer norm has none.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use candle_core::{Device, Result, Tensor, Var};
use dino_train::exchange::tcp::Ring;
use dino_train::exchange::{Exchange, alone};
use dino_train::kernels::matmul::Precision;
use dino_train::ops::batch_norm::{self, BatchNorm, Statistics};
use dino_train::ops::conv::Convolution;
use dino_train::ops::pointwise::Pointwise;
use dino_train::ops::{depthwise::depthwise, gelu::gelu, layer_norm, linear::linear, max_pool};

fn var(shape: &[usize], seed: usize) -> Var {
    let n = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|i| (((i * 7919 + seed * 104_729) % 1009) as f32) / 300.0 - 1.7).collect();
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
}

/// The output and the gradient of every argument, flattened.
fn run(arguments: &[&Var], f: impl Fn() -> Result<Tensor>) -> Vec<Vec<f32>> {
    run_weighted(arguments, |out| var(out.dims(), 99).as_tensor().clone(), f)
}

/// The same, where the loss is the sum of the output times these weights.
fn run_weighted(arguments: &[&Var], weights: impl Fn(&Tensor) -> Tensor, f: impl Fn() -> Result<Tensor>) -> Vec<Vec<f32>> {
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let out = f().unwrap();
    let gradients = (&out * &weights(&out)).unwrap().sum_all().unwrap().backward().unwrap();
    let mut all = vec![flat(&out)];
    all.extend(arguments.iter().map(|argument| flat(gradients.get(argument).unwrap())));
    all
}

fn assert_close(got: &[Vec<f32>], want: &[Vec<f32>]) {
    assert_eq!(got.len(), want.len());
    for (argument, (got, want)) in got.iter().zip(want).enumerate() {
        let scale = want.iter().fold(1f32, |a, b| a.max(b.abs()));
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() <= 1e-5 * scale, "argument {argument}: {g}, not {w}");
        }
    }
}

#[test]
fn linear_equals_matmul() {
    let (x, w) = (var(&[301, 19], 1), var(&[23, 19], 2));
    assert_close(&run(&[&x, &w], || linear(&x, &w, Precision::F32)), &run(&[&x, &w], || x.matmul(&w.t()?)));
}

#[test]
fn gelu_equals_the_erf_form() {
    let x = var(&[70_001], 3);
    assert_close(&run(&[&x], || gelu(&x)), &run(&[&x], || x.gelu_erf()));
}

#[test]
fn layer_norm_equals_the_composed_form_in_every_gradient() {
    let (x, w, b) = (var(&[600, 33], 4), var(&[33], 5), var(&[33], 6));
    let arguments = [&x, &w, &b];
    assert_close(
        &run(&arguments, || layer_norm::layer_norm(&x, &w, &b, 1e-6)),
        &run(&arguments, || layer_norm::composed(&x, &w, &b, 1e-6)),
    );
}

#[test]
fn convolutions_equal_candles_in_both_gradients() {
    // Odd sides, several chunks, more and fewer pictures than cores.
    for (n, height, width, channels, outputs, side, stride) in
        [(5, 21, 18, 3, 7, 7, 2), (3, 19, 17, 6, 10, 3, 1), (1, 8, 9, 6, 10, 3, 2), (4, 16, 15, 12, 5, 1, 1), (4, 9, 8, 12, 5, 1, 2)]
    {
        let (x, w) = (var(&[n, height, width, channels], 7), var(&[outputs, channels, side, side], 8));
        let conv = Convolution { stride, precision: Precision::F32 };
        assert_close(&run(&[&x, &w], || conv.forward(&x, &w)), &run(&[&x, &w], || conv.composed(&x, &w)));
    }
    let (x, w) = (var(&[1, 4, 4, 3], 7), var(&[2, 5, 3, 3], 8));
    assert!(Convolution { stride: 1, precision: Precision::F32 }.forward(&x, &w).is_err(), "channels that do not fit");
}

/// Sizes smaller than a window, more and fewer pictures than cores, and channels that fill no block.
const DEPTHWISE: [[usize; 4]; 3] = [[3, 9, 11, 19], [1, 2, 3, 5], [2, 8, 5, 16]];

#[test]
fn depthwise_convolutions_equal_candles_in_every_gradient() {
    for shape in DEPTHWISE {
        let channels = shape[3];
        let (x, w, b) = (var(&shape, 15), var(&[channels, 1, 7, 7], 16), var(&[channels], 17));
        let candles = || {
            let planes = x.permute((0, 3, 1, 2))?.contiguous()?.conv2d(&w, 3, 1, 1, channels)?;
            planes.permute((0, 2, 3, 1))?.contiguous()?.broadcast_add(&b)
        };
        assert_close(&run(&[&x, &w, &b], || depthwise(&x, &w, &b)), &run(&[&x, &w, &b], candles));
    }
    let (x, b) = (var(&[1, 4, 4, 3], 15), var(&[3], 17));
    assert!(depthwise(&x, &var(&[3, 1, 5, 5], 16), &b).is_err(), "windows of another size");
    assert!(depthwise(&x, &var(&[2, 1, 7, 7], 16), &b).is_err(), "channels that do not fit");
}

#[test]
fn gradients_of_depthwise_convolutions_are_slopes() {
    let [x, w, b] = [var(&[2, 4, 5, 3], 18), var(&[3, 1, 7, 7], 19), var(&[3], 20)];
    let weights = var(&[2, 4, 5, 3], 99);
    let loss = |x: &Tensor, w: &Tensor, b: &Tensor| {
        let out = depthwise(x, w, b).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let weights = weights.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        out.iter().zip(&weights).map(|(out, weight)| f64::from(*out) * f64::from(*weight)).sum::<f64>()
    };
    let gradients = run(&[&x, &w, &b], || depthwise(&x, &w, &b));
    let arguments = [x.as_tensor(), w.as_tensor(), b.as_tensor()];
    for (argument, gradient) in gradients[1..].iter().enumerate() {
        for at in (0..gradient.len()).step_by(7) {
            // The output is linear in each argument, so that a long step is as good as a short one.
            let moved = |by: f32| {
                let mut values = arguments[argument].flatten_all().unwrap().to_vec1::<f32>().unwrap();
                values[at] += by;
                let moved = Tensor::from_vec(values, arguments[argument].shape(), &Device::Cpu).unwrap();
                let of = |i: usize| if i == argument { &moved } else { arguments[i] };
                loss(of(0), of(1), of(2))
            };
            let slope = (moved(1.0) - moved(-1.0)) / 2.0;
            assert!((slope - f64::from(gradient[at])).abs() < 1e-3, "argument {argument}[{at}]: {slope}, not {}", gradient[at]);
        }
    }
}

#[test]
fn the_pointwise_branch_equals_the_composed_form_in_every_gradient() {
    // Several chunks and tasks, of 43 rows for each factor.
    let factors = [0.0, 1.25, 1.25, 0.0, 1.25, 1.25, 1.25];
    let (x, y) = (var(&[301, 12], 21), var(&[301, 12], 22));
    for scaled in [false, true] {
        let branch = Pointwise { dim: 12, hidden: 20, scaled, eps: 1e-6, precision: Precision::F32 };
        let p = var(&[branch.len()], 23);
        assert_eq!(branch.len(), branch.parameters().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>());
        for factors in [None, Some(&factors[..])] {
            let arguments = [&x, &y, &p];
            assert_close(
                &run(&arguments, || branch.forward(&x, &y, &p, factors)),
                &run(&arguments, || branch.composed(&x, &y, &p, factors)),
            );
        }
        let frozen = branch.forward(&x.as_detached_tensor(), &y.as_detached_tensor(), &p.as_detached_tensor(), None).unwrap();
        let tracked = branch.forward(&x, &y, &p, None).unwrap();
        let values = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(frozen), values(tracked), "what is kept changes nothing");
        assert!(branch.forward(&x, &y, &p, Some(&[1.0; 2])).is_err(), "301 rows are not of two pictures");
    }
}

#[test]
fn max_pooling_equals_the_composed_form() {
    for shape in [[3, 11, 8, 5], [2, 1, 2, 3], [1, 16, 16, 4]] {
        // No two values are the same: shares of equal ones differ between the forms.
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|i| ((i * 7919) % 15_013) as f32 / 1000.0 - 7.0).collect();
        let x = Var::from_tensor(&Tensor::from_vec(values, &shape[..], &Device::Cpu).unwrap()).unwrap();
        assert_close(&run(&[&x], || max_pool::max_pool(&x)), &run(&[&x], || max_pool::composed(&x)));
    }
}

#[test]
fn batch_norm_over_two_processes_equals_that_over_the_whole_batch() {
    // Parts of different length.
    let (rows, own) = (57, [20, 37]);
    let (x, parameters, weights) = (var(&[rows, 5], 12), var(&[10], 13), var(&[rows, 5], 14));
    let part = |all: &Tensor, rank: usize| all.narrow(0, [0, own[0]][rank], own[rank]).unwrap();
    for fused in [true, false] {
        let gradients = |x: &Tensor, weights: &Tensor, exchange: Arc<dyn Exchange>| {
            let (x, p) = (Var::from_tensor(x).unwrap(), Var::from_tensor(&parameters).unwrap());
            run_weighted(
                &[&x, &p],
                |_| weights.clone(),
                || {
                    if fused {
                        let statistics = Statistics::of(&x, &*exchange)?;
                        BatchNorm { statistics, eps: 1e-5, rectify: true, exchange: exchange.clone() }.forward(&x, &p, None)
                    } else {
                        batch_norm::composed(&x, &p, None, (1e-5, true), &exchange).map(|(out, _)| out)
                    }
                },
            )
        };
        let whole = gradients(&x, &weights, alone());
        let parts: Vec<_> = std::thread::scope(|scope| {
            let ring = Ring::between_threads(2, None, Duration::from_secs(20)).unwrap();
            let one = |e: Arc<dyn Exchange>| gradients(&part(&x, e.rank()), &part(&weights, e.rank()), e);
            let running: Vec<_> = ring.into_iter().map(|e| scope.spawn(move || one(e))).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        // Rows of output and input gradient follow each other, the parameters' gradients add up.
        let joined: Vec<Vec<f32>> = (0..whole.len())
            .map(|i| {
                if i + 1 < whole.len() {
                    [parts[0][i].as_slice(), &parts[1][i]].concat()
                } else {
                    parts[0][i].iter().zip(&parts[1][i]).map(|(a, b)| a + b).collect()
                }
            })
            .collect();
        assert_close(&joined, &whole);
    }
}

#[test]
fn batch_norm_equals_the_composed_form_in_every_gradient() {
    let (x, p, shortcut) = (var(&[3, 17, 11, 6], 9), var(&[12], 10), var(&[3, 17, 11, 6], 11));
    let alone = alone();
    for rectify in [false, true] {
        let fused = |shortcut| {
            BatchNorm { statistics: Statistics::of(&x, &*alone)?, eps: 1e-5, rectify, exchange: alone.clone() }.forward(&x, &p, shortcut)
        };
        let composed = |shortcut| batch_norm::composed(&x, &p, shortcut, (1e-5, rectify), &alone).map(|(out, _)| out);
        assert_close(&run(&[&x, &p], || fused(None)), &run(&[&x, &p], || composed(None)));
        let (arguments, shortcut) = ([&x, &p, &shortcut], Some(shortcut.as_tensor()));
        assert_close(&run(&arguments, || fused(shortcut)), &run(&arguments, || composed(shortcut)));
    }
    let statistics = Statistics::of(&x, &*alone).unwrap();
    let evaluated = batch_norm::evaluated(
        &x,
        &p,
        Some(&shortcut),
        &Tensor::new(statistics.mean.as_slice(), &Device::Cpu).unwrap(),
        &Tensor::new(statistics.variance.as_slice(), &Device::Cpu).unwrap(),
        (1e-5, true),
    );
    let (composed, followed) = batch_norm::composed(&x, &p, Some(&shortcut), (1e-5, true), &alone).unwrap();
    let flat = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_close(&[flat(evaluated.unwrap())], &[flat(composed)]);
    assert_close(&[flat(followed)], &[flat(statistics.unbiased(&Device::Cpu).unwrap())]);
}
