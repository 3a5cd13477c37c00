//! Values that no run can have end the program with 2 before it does anything, as flags that do not exist do.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Output};

fn dino_train(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dino-train")).args(arguments).output().unwrap()
}

/// A command line, and flags with values that it cannot have.
type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)]);

#[test]
fn values_out_of_range_are_wrong_usage() {
    let train = ["train", "--data", "nowhere", "--out", "nowhere/run"];
    let pictures = ["--train", "nowhere", "--val", "nowhere"];
    let knn = [&["knn", "--model", "nowhere"][..], &pictures].concat();
    let linear = [&["linear", "--model", "nowhere"][..], &pictures].concat();
    let finetune = [&["finetune", "--model", "nowhere", "--out", "nowhere/run"][..], &pictures].concat();
    let cases: [Case<'_>; 7] = [
        (
            &train,
            &[
                ("--epochs", "0"),
                ("--lr", "nan"),
                ("--lr", "inf"),
                ("--batch-size", "0"),
                ("--out-dim", "0"),
                ("--patch-size", "0"),
                ("--accumulate", "0"),
                ("--teacher-temp", "0"),
                ("--momentum-teacher", "1"),
                ("--drop-path-rate", "1"),
                ("--mask-ratio-max", "1.5"),
                ("--processes", "0"),
                ("--shrink", "0"),
                ("--resume", "sometimes"),
            ],
        ),
        (&knn, &[("--k", "0"), ("--k", "10,0"), ("--temperature", "0"), ("--temperature", "nan")]),
        (&linear, &[("--epochs", "0"), ("--lr", "0"), ("--lr", "0.1,nan"), ("--batch-size", "0"), ("--n-last-blocks", "0")]),
        (&finetune, &[("--epochs", "0"), ("--lr", "nan"), ("--layer-decay", "0"), ("--smoothing", "1"), ("--mixup", "inf")]),
        (&["tsne", "--model", "nowhere", "--images", "nowhere", "--out", "map.svg"], &[("--perplexity", "nan"), ("--perplexity", "0.5")]),
        (&["attention", "--model", "nowhere", "--images", "nowhere", "--out", "nowhere"], &[("--threshold", "0"), ("--threshold", "2")]),
        (&["export", "--checkpoint", "nowhere", "--out", "nowhere"], &[("--heads", "0"), ("--layers", "0")]),
    ];
    for (line, values) in cases {
        for (flag, value) in values {
            let output = dino_train(&[line, &[flag, value]].concat());
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{} {flag} {value}: {said}", line[0]);
            assert!(said.contains(flag) || said.contains("--batch-size-per-gpu"), "{} {flag} {value}: {said}", line[0]);
        }
    }
}

#[test]
fn settings_that_do_not_go_together_are_wrong_usage_in_a_file_too() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let train = ["train", "--data", "nowhere", "--out", out.to_str().unwrap()];
    let config = folder.path().join("recipe.toml");
    fs_err::write(&config, "epochs = 0\n").unwrap();
    let config = config.to_str().unwrap();
    for (flags, named) in [
        (&["--epochs", "2", "--warmup-epochs", "3"][..], "--warmup-epochs 3"),
        (&["--sinkhorn-queue", "9"], "--sinkhorn-queue"),
        (&["--config", config], "--epochs"),
        (&["--prefix", "teacher"], "--init"),
    ] {
        let output = dino_train(&[&train[..], flags].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {said}");
        assert!(said.contains(named), "{flags:?}: {said}");
    }
    assert!(!out.exists(), "nothing was begun");
}
