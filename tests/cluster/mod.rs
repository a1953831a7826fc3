//! What the tests of the cluster and its bench stand on; each uses its part.

pub mod checker;
pub mod etcd;
pub mod field;
#[path = "../kit/ps.rs"]
pub mod ps;
pub mod records;
pub mod rest;
