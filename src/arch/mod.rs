//! Floor 0: what depends on the processor.

mod x86_64;
pub use x86_64::*;
