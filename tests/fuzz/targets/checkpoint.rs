//! PyTorch's files under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dino_fuzz::checkpoint(bytes));
