//! `dino-train knn`: the k-NN evaluation of the DINO paper.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use dino_hub::Location;
use dino_vision::bulk::Embedder;
use dino_vision::embedding::Pooling;
use dino_vision::head::Tokens;
use dino_vision::vote::DEFAULT_TEMPERATURE;
use ndarray::Array2;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Serialize, Serializer as _};

use super::backbone::Running;
use crate::data::labelled::Labelled;
use crate::evaluate::copies::{self, Named};
use crate::evaluate::features::{self, View};
use crate::evaluate::figures::Figures;
use crate::evaluate::knn::{Features, Report, evaluate};

/// Classify the pictures of one folder by their nearest neighbours in another. The figures are the paper's; they need no
/// training, and are the quickest way to see whether a backbone learns.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model folder, or a checkpoint, which is exported to a temporary folder first; `hf://OWNER/NAME[@REVISION][/FILE]` names one on a
    /// model hub.
    #[arg(long, value_name = "MODEL_DIR|CHECKPOINT|HF", value_parser = dino_program::flags::location(), required_unless_present = "features", requires_all = ["train", "val"])]
    model: Option<Location>,
    /// Pictures whose classes are known: folders directly below DIR are classes.
    #[arg(long, value_name = "DIR", requires = "model")]
    train: Option<PathBuf>,
    /// Pictures to classify, in folders of the same names.
    #[arg(long, value_name = "DIR", requires = "model")]
    val: Option<PathBuf>,
    /// Features made elsewhere, instead of a model and pictures: train.features, train.labels, test.features, test.labels.
    #[arg(long, value_name = "FILE.safetensors", conflicts_with_all = ["model", "train", "val"])]
    features: Option<PathBuf>,
    /// Numbers of neighbours to measure with. On small sets 10 or 20 are best.
    #[arg(long, value_parser = dino_program::flags::at_least_one(), value_delimiter = ',', default_values_t = [10, 20, 100, 200], value_name = "K,…")]
    k: Vec<usize>,
    /// Temperature of the vote. The paper's value suits normalised features of any backbone.
    #[arg(long, value_parser = dino_program::flags::above_zero::<f64>, default_value_t = DEFAULT_TEMPERATURE)]
    temperature: f64,
    #[command(flatten)]
    running: Running,
}

/// Runs the verb.
///
/// # Errors
/// Where there is nothing readable to evaluate, or the model does not run.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut ks = args.k.clone();
    // A k that is asked for twice is answered once.
    let mut seen = BTreeSet::new();
    ks.retain(|&k| seen.insert(k));

    let (train, val, copies) = match (&args.features, &args.model, &args.train, &args.val) {
        (Some(file), ..) => {
            let (train, val) = read_features(file).with_context(|| file.display().to_string())?;
            (train, val, None)
        }
        (None, Some(model), Some(train), Some(val)) => embed(args, model, train, val)?,
        _ => bail!("either --features, or --model with --train and --val"),
    };
    for k in ks.iter().filter(|&&k| k > train.len()) {
        tracing::warn!("k = {k} is more than there are pictures in train: all {} are used", train.len());
    }
    if let Some(copies) = copies.as_ref().filter(|copies| !copies.is_empty()) {
        warn_of(copies, val.len());
    }
    print(&evaluate(&train, &val, &ks, args.temperature)?, val.len(), copies.map(|copies| copies.len()))
}

/// What is printed as JSON of each k: those who read the last line expect nothing but them in it.
#[derive(Serialize)]
struct Printed<'a> {
    #[serde(flatten)]
    figures: &'a Figures,
    /// Pictures of val with the same pixels as one of train; none where features alone were given.
    #[serde(skip_serializing_if = "Option::is_none")]
    val_copies: Option<usize>,
}

/// Pairs that a warning names.
const NAMED_COPIES: usize = 3;

/// Warns of pictures of val, of which there are `count`, that are in train too.
pub(super) fn warn_of(copies: &[(String, String)], count: usize) {
    let named: Vec<String> = copies.iter().take(NAMED_COPIES).map(|(val, train)| format!("{val} is {train}")).collect();
    let more = if copies.len() > NAMED_COPIES { format!(" (and {} more)", copies.len() - NAMED_COPIES) } else { String::new() };
    tracing::warn!(
        "{} of {count} pictures of val have the same pixels as a picture of train, which makes the figures too good: {}{more}",
        copies.len(),
        named.join(", ")
    );
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print(report: &Report, count: usize, val_copies: Option<usize>) -> anyhow::Result<()> {
    println!("{count} pictures    top-1    top-5    mean over classes");
    for (k, figures) in &report.0 {
        println!("k = {k:<8} {:8.2} {:8.2} {:8.2}", figures.top1, figures.top5, figures.mean_class);
    }
    let printed: Vec<_> = report.0.iter().map(|(k, figures)| (format!("k{k}"), Printed { figures, val_copies })).collect();
    let mut json = Vec::new();
    serde_json::Serializer::new(&mut json).collect_map(printed)?;
    println!("{}", String::from_utf8(json)?);
    Ok(())
}

/// Names of a picture of val and of the picture of train that it is a copy of.
type Copies = Vec<(String, String)>;

/// Features of both folders, through the same sessions as the server's, and which pictures are in both.
fn embed(args: &Args, model: &Location, train: &Path, val: &Path) -> anyhow::Result<(Features, Features, Option<Copies>)> {
    let mut embedder = args.running.open(model, 0)?.embedder(Pooling::Cls)?;
    let (train, val) = Labelled::train_and_val(train, 0, val)?;
    let (train, of_train) = embed_set(&mut embedder, "train", &train)?;
    let (val, of_val) = embed_set(&mut embedder, "val", &val)?;
    let copies = copies::of(&of_val, &of_train)?;
    Ok((train, val, Some(copies)))
}

fn embed_set(embedder: &mut Embedder, name: &'static str, pictures: &Labelled) -> anyhow::Result<(Features, Named)> {
    let batch = features::all(name, embedder, pictures, View::Evaluation, Tokens { n_last_blocks: 1, avgpool_patchtokens: false })?;
    tracing::info!("{name}: {} pictures, {} skipped", batch.classes.len(), pictures.skipped());
    ensure!(!batch.classes.is_empty(), "none of the pictures of {name} could be read");
    let names = batch.pictures.iter().map(|&picture| format!("{name}/{}", pictures.name(picture))).collect();
    let named = Named { names, fingerprints: batch.fingerprints };
    Ok((Features::new(name, batch.features, batch.classes)?, named))
}

/// The two sets of a safetensors file.
fn read_features(path: &Path) -> anyhow::Result<(Features, Features)> {
    let bytes = fs_err::read(path)?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let train = read_labels(&tensors, "train.labels")?;
    let test = read_labels(&tensors, "test.labels")?;
    // Numbers without gaps, in the order of the labels.
    let distinct: Vec<i64> = train.iter().chain(&test).copied().collect::<BTreeSet<_>>().into_iter().collect();
    let set = |name: &'static str, labels: Vec<i64>| -> anyhow::Result<Features> {
        let vectors = read_matrix(&tensors, &format!("{name}.features"))?;
        let number = |label: i64| distinct.partition_point(|&other| other < label) as u32;
        Ok(Features::new(name, vectors, labels.into_iter().map(number).collect())?)
    };
    Ok((set("train", train)?, set("test", test)?))
}

fn read_matrix(tensors: &SafeTensors<'_>, name: &str) -> anyhow::Result<Array2<f32>> {
    let tensor = tensors.tensor(name).with_context(|| name.to_owned())?;
    let &[rows, dim] = tensor.shape() else { bail!("{name} has the shape {:?}, not [pictures, dim]", tensor.shape()) };
    let numbers: Vec<f32> = match tensor.dtype() {
        Dtype::F32 => numbers(&tensor).map(f32::from_le_bytes).collect(),
        Dtype::F16 => numbers(&tensor).map(|bytes| half::f16::from_le_bytes(bytes).to_f32()).collect(),
        Dtype::BF16 => numbers(&tensor).map(|bytes| half::bf16::from_le_bytes(bytes).to_f32()).collect(),
        other => bail!("{name} is {other:?}: write it as F32, F16 or BF16"),
    };
    Ok(Array2::from_shape_vec((rows, dim), numbers)?)
}

fn read_labels(tensors: &SafeTensors<'_>, name: &str) -> anyhow::Result<Vec<i64>> {
    let tensor = tensors.tensor(name).with_context(|| name.to_owned())?;
    ensure!(tensor.shape().len() == 1, "{name} has the shape {:?}, not [pictures]", tensor.shape());
    Ok(match tensor.dtype() {
        Dtype::I64 => numbers(&tensor).map(i64::from_le_bytes).collect(),
        Dtype::I32 => numbers(&tensor).map(|bytes| i32::from_le_bytes(bytes).into()).collect(),
        other => bail!("{name} is {other:?}: write it as I64 or I32"),
    })
}

/// The numbers of a tensor as bytes. The file's reader has checked that they are whole.
fn numbers<'a, const SIZE: usize>(tensor: &TensorView<'a>) -> impl Iterator<Item = [u8; SIZE]> + use<'a, SIZE> {
    tensor.data().as_chunks().0.iter().copied()
}
