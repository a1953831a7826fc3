//! Frames made by hand: announcements of an address to neighbours, and a nudge for clients that wait in silence.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{recv, MsgFlags};

use super::{arp_socket, sockaddr, sockaddr_ll, Mac};
use crate::sys::fd::{send, socket};
use crate::sys::fd_extra::set_option;

const BROADCAST: Mac = [0xff; 6];
/// The type of a neighbour advertisement in ICMPv6.
const ADVERTISEMENT: u8 = 136;

/// Tells neighbours on an interface that an address is at its hardware address, and listens for others who say the same.
#[derive(Debug)]
pub struct Crier {
    socket: OwnedFd,
    /// Hears neighbours, where the one above does not.
    ears: Option<OwnedFd>,
    index: i32,
    mac: Mac,
    ip: IpAddr,
}

impl Crier {
    /// For interface `index` in the namespace of this thread.
    pub fn open(index: i32, mac: Mac, ip: IpAddr) -> io::Result<Crier> {
        let ears = ip.is_ipv6().then(advertisements).transpose()?;
        Ok(Crier { socket: arp_socket(index)?, ears, index, mac, ip })
    }

    /// Readable when a neighbour has said something.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.ears.as_ref().unwrap_or(&self.socket).as_fd()
    }

    /// Says it once: gratuitous ARP as request and as reply, or an unsolicited neighbour advertisement.
    pub fn cry(&self) -> io::Result<()> {
        match self.ip {
            IpAddr::V4(ip) => [1, 2].iter().try_for_each(|&operation| self.frame(libc::ETH_P_ARP, &announcement(self.mac, ip, operation))),
            IpAddr::V6(ip) => self.frame(libc::ETH_P_IPV6, &advertisement(self.mac, ip)),
        }
    }

    fn frame(&self, protocol: i32, frame: &[u8]) -> io::Result<()> {
        send(self.socket.as_fd(), frame, &[], &sockaddr_ll(self.index, protocol as u16)).map(drop)
    }

    /// The hardware address of somebody else who claims the address, if one has spoken.
    pub fn foreign(&self) -> Option<Mac> {
        let (mut foreign, mut frame) = (None, [0; 128]);
        // Not by recvmsg with flags of ours: these sockets refuse some.
        while let Ok(length) = recv(self.fd().as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
            foreign = claims(&frame[..length], self.ip).filter(|mac| *mac != self.mac).or(foreign);
        }
        foreign
    }
}

/// A socket that hears neighbour advertisements, and nothing else of ICMPv6.
fn advertisements() -> io::Result<OwnedFd> {
    const FILTER: i32 = 1;
    let fd = socket(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6)?;
    let mut blocked = [0xffff_ffff_u32; 8];
    blocked[usize::from(ADVERTISEMENT) / 32] &= !(1 << (ADVERTISEMENT % 32));
    let blocked: Vec<u8> = blocked.iter().flat_map(|word| word.to_ne_bytes()).collect();
    set_option(fd.as_fd(), libc::IPPROTO_ICMPV6, FILTER, &blocked)?;
    Ok(fd)
}

/// Who claims `ip` in an ARP frame or in a neighbour advertisement.
fn claims(frame: &[u8], ip: IpAddr) -> Option<Mac> {
    let (claimed, mac) = match ip {
        IpAddr::V4(ip) => (frame.get(28..32)? == ip.octets(), frame.get(22..28)?),
        // Its first option is the hardware address.
        IpAddr::V6(ip) => (frame.first() == Some(&ADVERTISEMENT) && frame.get(8..24)? == ip.octets() && frame.get(24..26)? == [2, 1], frame.get(26..32)?),
    };
    claimed.then(|| [mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]])
}

fn ethernet(to: Mac, from: Mac, protocol: i32) -> Vec<u8> {
    [&to[..], &from, &(protocol as u16).to_be_bytes()].concat()
}

fn announcement(mac: Mac, ip: Ipv4Addr, operation: u16) -> Vec<u8> {
    let target = if operation == 1 { [0; 6] } else { BROADCAST };
    let head = [0, 1, 8, 0, 6, 4];
    [&ethernet(BROADCAST, mac, libc::ETH_P_ARP)[..], &head, &operation.to_be_bytes(), &mac, &ip.octets(), &target, &ip.octets()].concat()
}

fn advertisement(mac: Mac, ip: Ipv6Addr) -> Vec<u8> {
    let all_nodes: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const OVERRIDE: u8 = 0x20;
    let mut icmp = [&[ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0][..], &ip.octets(), &[2, 1], &mac].concat();
    let pseudo = [&ip.octets()[..], &all_nodes.octets(), &(icmp.len() as u32).to_be_bytes(), &[0, 0, 0, 58]].concat();
    let sum = checksum(&[&pseudo[..], &icmp].concat());
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let head = [&[0x60, 0, 0, 0][..], &(icmp.len() as u16).to_be_bytes(), &[58, 255], &ip.octets(), &all_nodes.octets()].concat();
    [&ethernet([0x33, 0x33, 0, 0, 0, 1], mac, libc::ETH_P_IPV6)[..], &head, &icmp].concat()
}

/// The internet checksum.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// Wakes idle clients of connections that no longer exist: to an acknowledgement out of nowhere a client answers with its own,
/// and to that the kernel of the new owner says reset.
pub fn tickle(clients: &[(SocketAddr, SocketAddr)]) -> io::Result<()> {
    let raw = socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    for (own, client) in clients {
        let (IpAddr::V4(from), IpAddr::V4(to)) = (own.ip(), client.ip()) else { continue };
        let packet = acknowledgement((from, own.port()), (to, client.port()));
        // One client that cannot be reached must not keep the others asleep.
        let _ = send(raw.as_fd(), &packet, &[], &sockaddr(SocketAddr::new(client.ip(), 0)));
    }
    Ok(())
}

fn acknowledgement(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Vec<u8> {
    const ACK: u8 = 0x10;
    const TCP: u8 = libc::IPPROTO_TCP as u8;
    let mut tcp = [&from.1.to_be_bytes()[..], &to.1.to_be_bytes(), &[0; 8], &[0x50, ACK, 0x10, 0], &[0; 4]].concat();
    let pseudo = [&from.0.octets()[..], &to.0.octets(), &[0, TCP, 0, 20]].concat();
    let sum = checksum(&[&pseudo[..], &tcp].concat());
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    // The kernel fills in length, identification and checksum.
    let head = [&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, TCP, 0, 0][..], &from.0.octets(), &to.0.octets()].concat();
    [head, tcp].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_of_known_bytes() {
        // The example of RFC 1071.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(&[0xff]), !0xff00);
    }

    #[test]
    fn an_announcement_claims_its_address() {
        let (mac, ip) = ([2, 0, 0, 0, 0, 7], Ipv4Addr::new(10, 0, 0, 9));
        let frame = announcement(mac, ip, 1);
        assert_eq!(frame.len(), 42);
        assert_eq!(claims(&frame, ip.into()), Some(mac));
        assert_eq!(claims(&frame, Ipv4Addr::new(10, 0, 0, 8).into()), None);
        assert_eq!(claims(&frame[..20], ip.into()), None);
        let ip: Ipv6Addr = "fd00::9".parse().unwrap();
        // Behind the headers of Ethernet and IPv6.
        let message = &advertisement(mac, ip)[54..];
        assert_eq!(claims(message, ip.into()), Some(mac));
        assert_eq!(claims(message, "fd00::8".parse().unwrap()), None);
        assert_eq!(claims(&message[..30], ip.into()), None);
    }

    #[test]
    fn a_checksum_covers_itself() {
        let packet = acknowledgement((Ipv4Addr::LOCALHOST, 80), (Ipv4Addr::LOCALHOST, 4000));
        let pseudo = [127, 0, 0, 1, 127, 0, 0, 1, 0, 6, 0, 20];
        assert_eq!(checksum(&[&pseudo[..], &packet[20..]].concat()), 0);
    }
}
