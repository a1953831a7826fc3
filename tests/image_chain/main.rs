//! Frames written in rounds, frames that build upon others, and what of them is read back.

mod compact;
#[path = "../dice/mod.rs"]
#[allow(dead_code)]
mod dice;
mod layers;
mod links;
mod model;
