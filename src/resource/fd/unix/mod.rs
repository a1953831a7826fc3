//! Unix sockets: pairs, listeners, names, and the messages under way, passed descriptors included.

pub mod capture;
pub mod diag;
mod home;
pub mod restore;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::options::Choice;
use super::DescriptionId;
pub use capture::Survey;

/// What a socket is tied to.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Nothing.
    Idle,
    /// It listens.
    Listening {
        /// As given to listen(2).
        backlog: i32,
    },
    /// It is connected with a socket that is connected with it.
    Pair {
        /// The other one.
        peer: DescriptionId,
    },
    /// Its connection waits for `listener` to accept it.
    Pending {
        /// Who is to accept.
        listener: DescriptionId,
    },
    /// A datagram socket that sends to another one.
    Sends {
        /// Where to.
        peer: DescriptionId,
    },
    /// A datagram socket that sends to a name outside the tree.
    SendsOutside {
        /// The raw address.
        #[serde(with = "crate::resource::blob")]
        address: Vec<u8>,
    },
    /// Its peer is gone, or given up with `--external close`.
    HungUp,
}

/// The address a socket is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// The raw address.
    #[serde(with = "crate::resource::blob")]
    pub address: Vec<u8>,
    /// The socket's file, if the name is a path that still leads to it.
    pub file: Option<NameFile>,
    /// The name was inherited from the listener that accepted the connection.
    pub inherited: bool,
}

/// A socket's place in the file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameFile {
    /// From where the name leads to it: the root directory for an absolute name, else the working directory at the time.
    pub home: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Where `name` leads from its home.
fn join(home: &Path, name: &Path) -> PathBuf {
    home.join(name.strip_prefix("/").unwrap_or(name))
}

/// One message, or piece of a stream, that nobody has received.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Packet {
    /// Payload.
    #[serde(with = "crate::resource::blob")]
    pub bytes: Vec<u8>,
    /// Raw address of the sender; empty if it has none.
    #[serde(with = "crate::resource::blob")]
    pub from: Vec<u8>,
    /// Passed descriptors.
    pub files: Vec<DescriptionId>,
}

/// A unix socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET.
    pub kind: i32,
    /// Its address.
    pub name: Option<Name>,
    /// What it is tied to.
    pub role: Role,
    /// 1: it receives no more; 2: it sends no more.
    pub shutdown: u8,
    /// Messages to it that are under way.
    pub queue: Vec<Packet>,
    /// Options that differ from a fresh socket's.
    pub options: Vec<Choice>,
}
