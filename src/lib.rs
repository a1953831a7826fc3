#![doc = include_str!("ARCHITECTURE.md")]
#![deny(unsafe_code)]

pub mod error;
pub mod image;
pub mod store;

pub use error::{Error, Kind, Result};
