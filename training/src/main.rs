//! The command line of the trainer.

fn main() {}
