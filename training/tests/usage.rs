//! Values that no run can have end the program with 2 before it does anything, as flags that do not exist do.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Output};

fn dino_train(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dino-train")).args(arguments).output().unwrap()
}

/// A command line, and flags with values that it cannot have.
type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)]);

fn assert_wrong_usage(cases: &[Case<'_>]) {
    for (line, values) in cases {
        for (flag, value) in *values {
            let output = dino_train(&[*line, &[*flag, *value]].concat());
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{} {flag} {value}: {said}", line[0]);
            assert!(said.contains(flag) || said.contains("--batch-size-per-gpu"), "{} {flag} {value}: {said}", line[0]);
        }
    }
}

#[test]
fn values_out_of_range_are_wrong_usage() {
    let train = ["train", "--data", "nowhere", "--out", "nowhere/run"];
    let pictures = ["--train", "nowhere", "--val", "nowhere"];
    let knn = [&["knn", "--model", "nowhere"][..], &pictures].concat();
    let linear = [&["linear", "--model", "nowhere"][..], &pictures].concat();
    let finetune = [&["finetune", "--model", "nowhere", "--out", "nowhere/run"][..], &pictures].concat();
    assert_wrong_usage(&[
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
                ("--processes", "2000"),
                ("--device", "tpu"),
                ("--device", "cuda:"),
                ("--shrink", "0"),
                ("--resume", "sometimes"),
            ],
        ),
        (&knn, &[("--k", "0"), ("--k", "10,0"), ("--temperature", "0"), ("--temperature", "nan"), ("--device", "tpu")]),
        (&linear, &[("--epochs", "0"), ("--lr", "0"), ("--lr", "0.1,nan"), ("--batch-size", "0"), ("--n-last-blocks", "0")]),
        (&finetune, &[("--epochs", "0"), ("--lr", "nan"), ("--layer-decay", "0"), ("--smoothing", "1"), ("--mixup", "inf")]),
        (&["tsne", "--model", "nowhere", "--images", "nowhere", "--out", "map.svg"], &[("--perplexity", "nan"), ("--perplexity", "0.5")]),
        (&["attention", "--model", "nowhere", "--images", "nowhere", "--out", "nowhere"], &[("--threshold", "0"), ("--threshold", "2")]),
        (&["export", "--checkpoint", "nowhere", "--out", "nowhere"], &[("--heads", "0"), ("--layers", "0")]),
        (
            &["distill", "--teacher", "nowhere", "--data", "nowhere", "--out", "nowhere/run"],
            &[
                ("--epochs", "0"),
                ("--crop-size", "0"),
                ("--crop-size", "8192"),
                ("--smooth-l1-share", "1.5"),
                ("--local-crops-number", "65"),
                ("--local-crops-size", "0"),
                ("--local-crops-size", "4112"),
                ("--device", "tpu"),
            ],
        ),
        (
            &["pca", "--model", "nowhere", "--images", "nowhere", "--out", "sheet.png"],
            &[("--most", "0"), ("--most", "1001"), ("--image-size", "15"), ("--part", "0")],
        ),
        (
            &["anomaly-eval", "--model", "nowhere", "--normal", "nowhere", "--test", "nowhere"],
            &[("--segment-size", "15"), ("--segment-size", "4097"), ("--top", "0"), ("--top", "1.5"), ("--precision", "f64")],
        ),
    ]);
}

/// They would ask for more memory than there is.
#[test]
fn sizes_that_no_network_has_are_wrong_usage() {
    let most = [
        ("--dim", "16384"),
        ("--depth", "256"),
        ("--heads", "1024"),
        ("--registers", "1024"),
        ("--ffn-hidden", "65536"),
        ("--out-dim", "1048576"),
        ("--ibot-out-dim", "1048576"),
        ("--head-hidden-dim", "65536"),
        ("--head-bottleneck-dim", "65536"),
    ];
    let train = ["train", "--data", "nowhere", "--out", "nowhere/run"];
    for (flag, most) in most {
        let more = (most.parse::<u64>().unwrap() + 1).to_string();
        assert_wrong_usage(&[(&train, &[(flag, more.as_str()), (flag, "1000000000000")])]);
    }
    let distill = ["distill", "--teacher", "nowhere", "--data", "nowhere", "--out", "nowhere/run"];
    assert_wrong_usage(&[(&distill, &[("--dim", "16385"), ("--depth", "257"), ("--heads", "1025")])]);
}

#[test]
fn pictures_of_a_kind_that_is_not_written_are_wrong_usage() {
    assert_wrong_usage(&[
        (&["tsne", "--model", "nowhere", "--images", "nowhere"], &[("--out", "m.gif"), ("--out", "m")]),
        (&["pca", "--model", "nowhere", "--images", "nowhere"], &[("--out", "x.jpg"), ("--out", "x")]),
    ]);
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
