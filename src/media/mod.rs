//! Untrusted bytes to RGB pixels.
