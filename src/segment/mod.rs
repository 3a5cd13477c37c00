//! Masks from the last block's attention.
