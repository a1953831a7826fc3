//! Frames as bytes.
