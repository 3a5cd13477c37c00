//! `train --activation-checkpointing`: what is computed again is what would have been kept.

mod runs;

use std::process::Command;

use runs::{losses, pictures, run, text, weights};

#[test]
fn weights_and_losses_are_the_same_bit_by_bit() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    pictures(&data, 12);
    let dinov2 = ["--method", "dinov2", "--layer-scale", "0.1", "--registers", "2"];
    let first = folder.path().join("dino-kept").into_os_string().into_string().unwrap();
    let adapters = ["--init", &first, "--lora-rank", "2"];
    for (name, more) in [("dino", &[][..]), ("dinov2", &dinov2), ("adapters", &adapters)] {
        let [kept, again] = [("kept", "false"), ("again", "true")].map(|(how, value)| {
            let out = folder.path().join(format!("{name}-{how}"));
            // Stochastic depth draws its branches once, and both passes see them.
            let flags = ["--drop-path-rate", "0.4", "--epochs", "3", "--activation-checkpointing", value];
            let output = run(&data, &out, &[&flags, more].concat());
            assert!(output.status.success(), "{}", text(&output));
            out
        });
        assert_eq!(losses(&kept), losses(&again), "{name}");
        assert_eq!(weights(&kept), weights(&again), "{name}");
    }
}

#[test]
fn a_run_goes_on_with_the_flag_and_a_residual_network_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (data, whole, parts) = (folder.path().join("data"), folder.path().join("whole"), folder.path().join("parts"));
    pictures(&data, 8);
    assert!(run(&data, &whole, &["--epochs", "2"]).status.success());
    assert!(run(&data, &parts, &["--epochs", "1"]).status.success());
    let output = run(&data, &parts, &["--epochs", "2", "--resume", "--activation-checkpointing"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(losses(&parts).len(), 2);
    let out = folder.path().join("resnet");
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-train"));
    command.arg("train").arg("--data").arg(&data).arg("--out").arg(&out).args(["--arch", "resnet50", "--activation-checkpointing"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("--activation-checkpointing is for vision transformers"), "{}", text(&output));
    assert!(!out.exists());
}
