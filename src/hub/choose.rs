//! Which files of a repository make a model.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::name::is_safe_path;
use crate::{Error, Name};

/// Weights by their usual names, the best first. An index names further files.
/// The order is that in which a folder of them is read.
const WEIGHTS: [&str; 4] = ["model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin"];
/// How other files of weights end.
const WEIGHT_ENDINGS: [&str; 5] = [".safetensors", ".pth", ".pt", ".bin", ".ckpt"];
/// What describes weights or a graph.
const CONFIGS: [&str; 2] = ["config.json", "preprocessor_config.json"];
const INDEX: &str = ".index.json";
const MANIFEST: &str = "manifest.json";

/// What a model is fetched for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// To read its weights: `config.json`, `preprocessor_config.json`, and safetensors or a file of PyTorch.
    Weights,
    /// To run it: a model folder of ours, or an ONNX file.
    Graph {
        /// `f32`, `f16` or `int8`: of several files, the one of this precision.
        precision: String,
    },
    /// To run it, from whatever there is: a model folder of ours, else weights, else an ONNX file.
    Either {
        /// As for [`Self::Graph`].
        precision: String,
    },
}

/// The files to fetch, and what to open then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// These first.
    pub(crate) files: Vec<String>,
    /// One of them that names further files.
    pub(crate) index: Option<String>,
    /// What to open, from the top of the repository; empty for all of it.
    pub(crate) open: String,
    /// Files that were looked for and are not there.
    pub(crate) absent: Vec<String>,
}

/// Chooses from the files that there are.
pub(crate) fn plan(name: &Name, want: &Want, held: &BTreeSet<String>) -> Result<Plan, Error> {
    let repository = Files { name, held, folder: String::new() };
    match name.file() {
        None => repository.choose(want),
        Some(file) if held.contains(file) => {
            repository.check_kind(file, want)?;
            Ok(repository.named(file, want))
        }
        Some(folder) => {
            let folder = format!("{folder}/");
            if held.iter().any(|file| file.starts_with(&folder)) {
                return Files { folder, ..repository }.choose(want);
            }
            Err(Error::NoFile { name: name.to_string(), held: held.iter().cloned().collect() })
        }
    }
}

/// The files of a repository, or of one folder in it.
struct Files<'a> {
    name: &'a Name,
    held: &'a BTreeSet<String>,
    /// With a slash at its end, or empty.
    folder: String,
}

impl Files<'_> {
    fn has(&self, file: &str) -> bool {
        self.held.contains(&format!("{}{file}", self.folder))
    }

    fn choose(&self, want: &Want) -> Result<Plan, Error> {
        match want {
            Want::Weights => self.weights(),
            Want::Graph { precision } => self.graph(precision),
            Want::Either { precision } if self.has(MANIFEST) => self.graph(precision),
            Want::Either { precision } => self.weights().or_else(|error| self.graph(precision).map_err(|_| error)),
        }
    }

    /// Refuses a file that is named and is of the other kind, before it is fetched.
    fn check_kind(&self, file: &str, want: &Want) -> Result<(), Error> {
        let is_weights = WEIGHT_ENDINGS.iter().any(|end| file.ends_with(end)) || file.ends_with(INDEX);
        match want {
            Want::Graph { .. } if is_weights => {
                let way_out = format!("make one of them with `dino-train export --checkpoint {} --out DIR`, and serve DIR", self.name);
                Err(self.unusable("weights under that name, and no ONNX file", &way_out))
            }
            Want::Weights if file.ends_with(".onnx") => Err(self.unusable(
                "a graph under that name, and no weights",
                &format!("serve it as it is: dino-server serve --model {}", self.name),
            )),
            _ => Ok(()),
        }
    }

    fn weights(&self) -> Result<Plan, Error> {
        if let Some(usual) = WEIGHTS.iter().find(|file| self.has(file)) {
            // The folder is opened, which has its files in the same order of choice.
            return Ok(Plan {
                open: self.folder.trim_end_matches('/').to_owned(),
                ..self.named(&format!("{}{usual}", self.folder), &Want::Weights)
            });
        }
        let others: Vec<_> = self.here().filter(|file| WEIGHT_ENDINGS.iter().any(|end| file.ends_with(end))).collect();
        match others.as_slice() {
            [one] => Ok(self.named(&format!("{}{one}", self.folder), &Want::Weights)),
            [] if self.held.iter().any(|file| file.ends_with(".onnx")) => {
                Err(self.unusable("no weights, but a graph", &format!("serve it as it is: dino-server serve --model {}", self.name)))
            }
            [] => Err(self.unusable("no weights", "weights are read from .safetensors, .bin, .pth, .pt and .ckpt")),
            several => {
                let missing = format!("{} files of weights and none by the usual name", several.len());
                Err(self.unusable(&missing, &format!("name one of them: {}/FILE", self.name)))
            }
        }
    }

    fn graph(&self, precision: &str) -> Result<Plan, Error> {
        if self.has(MANIFEST) {
            let manifest = format!("{}{MANIFEST}", self.folder);
            let open = self.folder.trim_end_matches('/').to_owned();
            return Ok(Plan { files: vec![manifest.clone()], index: Some(manifest), open, absent: Vec::new() });
        }
        let usual = match precision {
            "f16" => ["model_fp16.onnx", "model.f16.onnx", "model.onnx"].as_slice(),
            "int8" => &["model_int8.onnx", "model_quantized.onnx", "model.int8.onnx", "model.onnx"],
            _ => &["model.onnx"],
        };
        let place = |file: &&str| ["onnx/", ""].iter().map(|folder| format!("{folder}{file}")).find(|file| self.has(file));
        if let Some(usual) = usual.iter().find_map(place) {
            return Ok(self.named(&format!("{}{usual}", self.folder), &Want::Graph { precision: precision.to_owned() }));
        }
        let graphs: Vec<_> = self.held.iter().filter(|file| file.starts_with(&self.folder) && file.ends_with(".onnx")).collect();
        match graphs.as_slice() {
            [one] => Ok(self.named(one, &Want::Graph { precision: precision.to_owned() })),
            [] if self.weights().is_ok() => {
                let way_out = format!("make one with `dino-train export --checkpoint {} --out DIR`, and serve DIR", self.name);
                Err(self.unusable("weights, and neither an ONNX file nor a model folder", &way_out))
            }
            [] => Err(self.unusable("neither an ONNX file nor a model folder", "name another repository")),
            several => {
                let missing = format!("{} ONNX files and none by the usual name", several.len());
                Err(self.unusable(&missing, &format!("name one of them: {}/FILE", self.name)))
            }
        }
    }

    /// The plan for this file, with what belongs to it.
    fn named(&self, file: &str, want: &Want) -> Plan {
        let (folder, base) = file.rsplit_once('/').map_or(("", file), |(folder, base)| (&file[..=folder.len()], base));
        let mut plan = Plan { open: file.to_owned(), ..Plan::default() };
        for config in CONFIGS {
            // Beside the file, or where it is in a folder `onnx`, one folder up: those are the places that are read.
            let above = folder.strip_suffix("onnx/").filter(|above| above.is_empty() || above.ends_with('/'));
            let places: Vec<_> = [Some(folder), above].into_iter().flatten().map(|place| format!("{place}{config}")).collect();
            match places.iter().find(|place| self.held.contains(*place)) {
                Some(place) => plan.files.push(place.clone()),
                None => plan.absent.extend(places),
            }
        }
        if !matches!(want, Want::Weights) && base.ends_with(".onnx") {
            let stem = base.strip_suffix(".onnx").unwrap_or(base);
            plan.files.extend(self.held.iter().filter(|other| is_beside(other, folder, base, stem)).cloned());
        }
        if base.ends_with(INDEX) || base == MANIFEST {
            plan.index = Some(file.to_owned());
        }
        if base == MANIFEST {
            folder.trim_end_matches('/').clone_into(&mut plan.open);
        }
        plan.files.retain(|other| other != file);
        plan.files.push(file.to_owned());
        plan
    }

    /// Files of this folder itself.
    fn here(&self) -> impl Iterator<Item = &str> {
        self.held.iter().filter_map(|file| file.strip_prefix(&self.folder)).filter(|file| !file.contains('/'))
    }

    fn unusable(&self, missing: &str, way_out: &str) -> Error {
        Error::Unusable {
            name: self.name.to_string(),
            missing: missing.to_owned(),
            held: self.held.iter().cloned().collect(),
            way_out: way_out.to_owned(),
        }
    }
}

/// Whether a file holds weights of the graph `base` in `folder`, by its name: `model.onnx_data`, `model.onnx.data`, `model.data`, …
fn is_beside(other: &str, folder: &str, base: &str, stem: &str) -> bool {
    let Some(name) = other.strip_prefix(folder) else { return false };
    let after = name.strip_prefix(base).is_some_and(|end| end.starts_with(['_', '.', '-']));
    after || [".data", "_data", ".bin", ".weights"].iter().any(|end| name.strip_prefix(stem) == Some(end))
}

/// The files that an index names, from the top of the repository.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn named_in(index: &str, bytes: &[u8], want: &Want) -> Result<Vec<String>, String> {
    #[derive(Deserialize)]
    struct Shards {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    #[derive(Deserialize)]
    struct Manifest {
        files: std::collections::BTreeMap<String, File>,
    }
    #[derive(Deserialize)]
    struct File {
        name: String,
        data: Option<Data>,
    }
    #[derive(Deserialize)]
    struct Data {
        name: String,
    }
    let names: BTreeSet<String> = match want {
        Want::Graph { precision } | Want::Either { precision } if index.ends_with(MANIFEST) => {
            let manifest: Manifest =
                serde_json::from_slice(bytes).map_err(|error| format!("it is no manifest.json of a model folder: {error}"))?;
            match manifest.files.get(precision) {
                Some(file) => file.data.iter().map(|data| &data.name).chain([&file.name]).cloned().collect(),
                // The program says what there is in place of it.
                None => BTreeSet::new(),
            }
        }
        _ => {
            let shards: Shards = serde_json::from_slice(bytes).map_err(|error| format!("it is no index of shards: {error}"))?;
            shards.weight_map.into_values().collect()
        }
    };
    let folder = index.rsplit_once('/').map_or("", |(folder, _)| &index[..=folder.len()]);
    match names.iter().find(|name| !is_safe_path(name)) {
        Some(name) => Err(format!("it names {name:?}, which does not lie beside it")),
        None => Ok(names.into_iter().map(|name| format!("{folder}{name}")).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(name: &str, want: &Want, held: &[&str]) -> Result<Plan, Error> {
        plan(&name.parse().unwrap(), want, &held.iter().map(|file| (*file).to_owned()).collect())
    }

    fn graph(precision: &str) -> Want {
        Want::Graph { precision: precision.to_owned() }
    }

    #[track_caller]
    fn takes(name: &str, want: &Want, held: &[&str], open: &str, files: &[&str]) {
        let plan = choose(name, want, held).unwrap();
        assert_eq!((plan.open.as_str(), plan.files), (open, files.iter().map(|file| (*file).to_owned()).collect()), "{name}");
    }

    #[test]
    fn weights_are_taken_by_their_usual_name() {
        let held = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json", "pytorch_model.bin"];
        takes("hf://o/n", &Want::Weights, &held, "", &["config.json", "preprocessor_config.json", "model.safetensors"]);
        let plan = choose("hf://o/n", &Want::Weights, &["pytorch_model.bin.index.json", "config.json"]).unwrap();
        assert_eq!(
            (plan.index.as_deref(), plan.absent),
            (Some("pytorch_model.bin.index.json"), vec!["preprocessor_config.json".to_owned()])
        );
        takes("hf://o/n", &Want::Weights, &["a.txt", "dino.pth"], "dino.pth", &["dino.pth"]);
        takes(
            "hf://o/n/b/x.ckpt",
            &Want::Weights,
            &["b/x.ckpt", "b/config.json", "config.json"],
            "b/x.ckpt",
            &["b/config.json", "b/x.ckpt"],
        );
        // What lies at the top is not read for a file in a folder, and not fetched for it.
        takes("hf://o/n/b/x.ckpt", &Want::Weights, &["b/x.ckpt", "config.json"], "b/x.ckpt", &["b/x.ckpt"]);
        // Absent is what was looked for, and never what is there under another folder.
        let absent = |want: &Want, held: &[&str]| choose(&format!("hf://o/n/{}", held[0]), want, held).unwrap().absent;
        assert_eq!(
            absent(&Want::Weights, &["b/x.ckpt", "config.json", "preprocessor_config.json"]),
            ["b/config.json", "b/preprocessor_config.json"]
        );
        assert_eq!(absent(&graph("f32"), &["onnx/x.onnx", "config.json"]), ["onnx/preprocessor_config.json", "preprocessor_config.json"]);
        let both = ["config.json", "model.safetensors", "model.safetensors.index.json"];
        takes("hf://o/n", &Want::Weights, &both, "", &["config.json", "model.safetensors.index.json"]);
        takes("hf://o/n/b", &Want::Weights, &["b/config.json", "b/model.safetensors"], "b", &["b/config.json", "b/model.safetensors"]);
    }

    #[test]
    fn graphs_are_taken_with_what_lies_beside_them() {
        let held = [
            "config.json",
            "onnx/model.onnx",
            "onnx/model.onnx_data",
            "onnx/model_fp16.onnx",
            "onnx/model_fp16.onnx_data",
            "preprocessor_config.json",
        ];
        let configs = ["config.json", "preprocessor_config.json"];
        takes("hf://o/n", &graph("f32"), &held, "onnx/model.onnx", &[configs[0], configs[1], "onnx/model.onnx_data", "onnx/model.onnx"]);
        takes(
            "hf://o/n",
            &graph("f16"),
            &held,
            "onnx/model_fp16.onnx",
            &[configs[0], configs[1], "onnx/model_fp16.onnx_data", "onnx/model_fp16.onnx"],
        );
        takes(
            "hf://o/n/onnx",
            &graph("int8"),
            &held,
            "onnx/model.onnx",
            &[configs[0], configs[1], "onnx/model.onnx_data", "onnx/model.onnx"],
        );
        let folder = choose("hf://o/n", &graph("f32"), &["manifest.json", "model.onnx"]).unwrap();
        assert_eq!(
            (folder.index.as_deref(), folder.open.as_str(), folder.files),
            (Some("manifest.json"), "", vec!["manifest.json".to_owned()])
        );
        takes("hf://o/n", &graph("f32"), &["x/dino.onnx"], "x/dino.onnx", &["x/dino.onnx"]);
    }

    #[test]
    fn either_prefers_what_is_ours_then_weights() {
        let either = Want::Either { precision: "f32".to_owned() };
        assert_eq!(choose("hf://o/n", &either, &["manifest.json", "model.safetensors"]).unwrap().index.as_deref(), Some("manifest.json"));
        takes("hf://o/n", &either, &["model.onnx", "model.safetensors"], "", &["model.safetensors"]);
        takes("hf://o/n", &either, &["model.onnx"], "model.onnx", &["model.onnx"]);
        takes("hf://o/n/x.onnx", &either, &["x.onnx", "x.onnx_data", "y.pth"], "x.onnx", &["x.onnx_data", "x.onnx"]);
        assert!(choose("hf://o/n", &either, &["README.md"]).unwrap_err().to_string().contains("holds no weights"));
    }

    #[test]
    fn what_is_not_there_is_said_with_what_is() {
        let says = |name: &str, want: &Want, held: &[&str], parts: &[&str]| {
            let error = choose(name, want, held).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        };
        says("hf://o/n", &Want::Weights, &["README.md"], &["holds no weights", "README.md", ".safetensors"]);
        says("hf://o/n", &Want::Weights, &["a.pth", "b.pth"], &["2 files of weights", "a.pth, b.pth", "hf://o/n"]);
        says("hf://o/n", &Want::Weights, &["model.onnx"], &["no weights, but a graph", "dino-server serve"]);
        says("hf://o/n", &graph("f32"), &["model.safetensors"], &["dino-train export --checkpoint hf://o/n"]);
        says("hf://o/n", &graph("f32"), &["a.txt"], &["neither an ONNX file nor a model folder", "a.txt"]);
        says(
            "hf://o/n/model.safetensors",
            &graph("f32"),
            &["model.safetensors"],
            &["no ONNX file", "export --checkpoint hf://o/n/model.safetensors"],
        );
        says("hf://o/n/model.onnx", &Want::Weights, &["model.onnx"], &["a graph", "serve --model hf://o/n/model.onnx"]);
        says("hf://o/n/x.pth", &Want::Weights, &["y.pth"], &["hf://o/n/x.pth does not exist", "y.pth"]);
    }

    #[test]
    fn an_index_names_files_beside_it() {
        let shards = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#;
        assert_eq!(named_in("x/i.index.json", shards, &Want::Weights).unwrap(), ["x/model-1.safetensors", "x/model-2.safetensors"]);
        let manifest = br#"{"files": {"f32": {"name": "model.onnx"}, "int8": {"name": "model.int8.onnx"}}}"#;
        assert_eq!(named_in("manifest.json", manifest, &graph("int8")).unwrap(), ["model.int8.onnx"]);
        for hostile in ["../../x", "/etc/passwd", "a\\b", ""] {
            let bytes = serde_json::json!({"weight_map": {"a": hostile}}).to_string();
            assert!(named_in("i.index.json", bytes.as_bytes(), &Want::Weights).is_err(), "{hostile}");
        }
        assert!(named_in("manifest.json", b"{", &graph("f32")).is_err());
    }
}
