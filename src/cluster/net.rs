//! Interfaces, addresses and routes by rtnetlink, and the frames that tell neighbours and clients where an address is now.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::config::Address;
use crate::error::{Context, Error, Result};
use crate::sys::fd::{bind, receive, send, socket};

pub mod packet;

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const NEWADDR: u16 = 20;
const NEWROUTE: u16 = 24;

const REQUEST_ACK: u16 = 0x5;
const REPLACE: u16 = 0x100;
const EXCL: u16 = 0x200;
const CREATE: u16 = 0x400;

/// A hardware address.
pub type Mac = [u8; 6];

/// A request to the kernel.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, body: &[u8]) -> Message {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(REQUEST_ACK | flags).to_ne_bytes());
        bytes.extend(body);
        Message(bytes)
    }

    /// `struct ifinfomsg` for interface `index`.
    fn link(kind: u16, flags: u16, index: i32, up: bool) -> Message {
        Message::new(kind, flags, &link_body(index, up))
    }

    fn attr(mut self, kind: u16, data: &[u8]) -> Message {
        put(&mut self.0, kind, data);
        self
    }
}

fn link_body(index: i32, up: bool) -> Vec<u8> {
    let up = if up { libc::IFF_UP as u32 } else { 0 };
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(up.to_ne_bytes());
    body.extend(up.to_ne_bytes());
    body
}

fn put(bytes: &mut Vec<u8>, kind: u16, data: &[u8]) {
    bytes.extend((data.len() as u16 + 4).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn attribute(kind: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, kind, data);
    bytes
}

fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

/// A way to the network namespace that it was opened in.
#[derive(Debug)]
pub struct Netlink(OwnedFd);

impl Netlink {
    /// Opens it in the namespace of this thread.
    pub fn open() -> Result<Netlink> {
        socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE).map(Netlink).context("cannot talk to the kernel about networks")
    }

    /// Sends a request and waits for its answer; the kernel's first message.
    fn ask(&self, mut message: Message) -> io::Result<Vec<u8>> {
        let length = message.0.len() as u32;
        message.0[..4].copy_from_slice(&length.to_ne_bytes());
        send(self.0.as_fd(), &message.0, &[], &[])?;
        let answer = receive(self.0.as_fd(), 32768, 0)?.ok_or(io::ErrorKind::WouldBlock)?.bytes;
        let number = |at: usize| answer.get(at..at + 4).map(|bytes| i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        let error = answer.get(4) == Some(&(libc::NLMSG_ERROR as u8)) && answer.get(5) == Some(&0);
        match number(16) {
            Some(code) if error && code < 0 => Err(io::Error::from_raw_os_error(-code)),
            Some(_) if error => Ok(Vec::new()),
            // What was asked for comes first, the acknowledgement after it.
            _ => receive(self.0.as_fd(), 32768, 0).map(|_| answer),
        }
    }

    /// The index of interface `name`.
    pub fn index(&self, name: &str) -> Result<i32> {
        let answer = self.ask(Message::link(GETLINK, 0, 0, false).attr(libc::IFLA_IFNAME, &text(name)));
        let answer = answer.map_err(|e| Error::io(format!("cannot find interface {name}; name one that exists in the node's configuration"), e))?;
        let index = answer.get(20..24).map(|bytes| i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        index.ok_or_else(|| Error::corrupt(format!("the kernel tells nothing about interface {name}")))
    }

    /// Makes a pair of interfaces: `outer` here, joined to bridge `master`, and `inner` with `mac` in the namespace `inside`.
    pub fn make_pair(&self, outer: &str, master: i32, inner: &str, mac: Mac, inside: BorrowedFd<'_>) -> Result<()> {
        const VETH_INFO_PEER: u16 = 1;
        // Left over from a node that was killed: its namespace may be on its way out.
        let _ = self.ask(Message::link(DELLINK, 0, 0, false).attr(libc::IFLA_IFNAME, &text(outer)));
        let mut peer = link_body(0, false);
        put(&mut peer, libc::IFLA_IFNAME, &text(inner));
        put(&mut peer, libc::IFLA_ADDRESS, &mac);
        put(&mut peer, libc::IFLA_NET_NS_FD, &inside.as_raw_fd().to_ne_bytes());
        let data = attribute(libc::IFLA_INFO_DATA, &attribute(VETH_INFO_PEER, &peer));
        let info = [attribute(libc::IFLA_INFO_KIND, &text("veth")), data].concat();
        let message = Message::link(NEWLINK, CREATE | EXCL, 0, true).attr(libc::IFLA_IFNAME, &text(outer)).attr(libc::IFLA_MASTER, &master.to_ne_bytes());
        self.ask(message.attr(libc::IFLA_LINKINFO, &info)).context(format_args!("cannot make the interface {outer} of a virtual node")).map(drop)
    }

    /// Brings an interface up.
    pub fn up(&self, index: i32) -> Result<()> {
        self.ask(Message::link(NEWLINK, 0, index, true)).context("cannot bring an interface up").map(drop)
    }

    /// Gives an interface an address for `seconds` from now, or makes it last so long. Routes are another matter.
    pub fn address(&self, index: i32, address: Address, seconds: u32) -> Result<()> {
        const NOPREFIXROUTE_NODAD: u32 = 0x202;
        let ip = octets(address.ip);
        let body = [&[family(address.ip), address.prefix, 0, 0][..], &index.to_ne_bytes()].concat();
        let lifetime = [seconds.to_ne_bytes(), seconds.to_ne_bytes(), [0; 4], [0; 4]].concat();
        let message = Message::new(NEWADDR, CREATE | REPLACE, &body).attr(libc::IFA_LOCAL, &ip).attr(libc::IFA_ADDRESS, &ip);
        let message = message.attr(libc::IFA_CACHEINFO, &lifetime).attr(libc::IFA_FLAGS, &NOPREFIXROUTE_NODAD.to_ne_bytes());
        self.ask(message).context(format_args!("cannot set the address {address}")).map(drop)
    }

    /// Routes the network of `address`, and everything else by `gateway`, through an interface.
    pub fn routes(&self, index: i32, address: Address, gateway: Option<IpAddr>) -> Result<()> {
        self.route(index, address.ip, address.prefix, None).context("cannot route the network of the service's address")?;
        match gateway {
            Some(gateway) => self.route(index, gateway, 0, Some(gateway)).context(format_args!("cannot route by {gateway}")),
            None => Ok(()),
        }
    }

    fn route(&self, index: i32, to: IpAddr, prefix: u8, gateway: Option<IpAddr>) -> io::Result<()> {
        let scope = if gateway.is_none() && to.is_ipv4() { libc::RT_SCOPE_LINK } else { libc::RT_SCOPE_UNIVERSE };
        let body = [family(to), prefix, 0, 0, libc::RT_TABLE_MAIN, libc::RTPROT_STATIC, scope, libc::RTN_UNICAST, 0, 0, 0, 0];
        let mut message = Message::new(NEWROUTE, CREATE | REPLACE, &body).attr(libc::RTA_OIF, &index.to_ne_bytes());
        if prefix > 0 {
            message = message.attr(libc::RTA_DST, &octets(network(to, prefix)));
        }
        if let Some(gateway) = gateway {
            message = message.attr(libc::RTA_GATEWAY, &octets(gateway));
        }
        self.ask(message).map(drop)
    }
}

/// The address with its host part cleared.
fn network(ip: IpAddr, prefix: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => IpAddr::V4((u32::from(ip) & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)).into()),
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) & u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)).into()),
    }
}

/// A raw address as the socket calls take it.
fn sockaddr(address: SocketAddr) -> Vec<u8> {
    let mut raw = (family(address.ip()) as u16).to_ne_bytes().to_vec();
    raw.extend(address.port().to_be_bytes());
    if address.is_ipv6() {
        raw.extend([0; 4]);
    }
    raw.extend(octets(address.ip()));
    raw.resize(if address.is_ipv6() { 28 } else { 16 }, 0);
    raw
}

/// `struct sockaddr_ll` of an interface, for frames of one protocol.
fn sockaddr_ll(index: i32, protocol: u16) -> Vec<u8> {
    let mut raw = (libc::AF_PACKET as u16).to_ne_bytes().to_vec();
    raw.extend(protocol.to_be_bytes());
    raw.extend(index.to_ne_bytes());
    raw.resize(20, 0);
    raw
}

/// A socket for ARP frames of an interface.
fn arp_socket(index: i32) -> io::Result<OwnedFd> {
    let fd = socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from((libc::ETH_P_ARP as u16).to_be()))?;
    bind(fd.as_fd(), &sockaddr_ll(index, libc::ETH_P_ARP as u16))?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_of_addresses() {
        let network = |ip: &str, prefix| network(ip.parse().unwrap(), prefix).to_string();
        assert_eq!(network("10.1.2.3", 24), "10.1.2.0");
        assert_eq!(network("10.1.2.3", 32), "10.1.2.3");
        assert_eq!(network("10.1.2.3", 0), "0.0.0.0");
        assert_eq!(network("fd00::1:2", 64), "fd00::");
    }

    #[test]
    fn attributes_are_padded_and_say_their_length() {
        let message = Message::new(1, 0, &[]).attr(3, b"abc\0d");
        assert_eq!(&message.0[16..], [9, 0, 3, 0, b'a', b'b', b'c', 0, b'd', 0, 0, 0]);
    }
}
