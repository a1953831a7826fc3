//! Beats: a datagram every now and then on the private network, for early suspicion and as proof of having let go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::hand::Hand;
use crate::cluster::decide::Heard;
use crate::cluster::now_ms;
use crate::cluster::state::Revision;
use crate::error::{Context, Result};

/// The last beat of each other node.
pub type Heards = Arc<Mutex<BTreeMap<String, Heard>>>;

#[derive(Serialize, Deserialize)]
struct Beat {
    cluster: String,
    node: String,
    holds: BTreeSet<Revision>,
}

/// Begins to send and to hear.
pub fn start(hand: &Arc<Hand>) -> Result<Heards> {
    let socket = UdpSocket::bind(hand.node.beats).context(format_args!("cannot send beats from {}", hand.node.beats))?;
    let ears = socket.try_clone().context("cannot share the socket of beats")?;
    let heards = Heards::default();
    let (own, heard) = (hand.clone(), heards.clone());
    std::thread::spawn(move || listen(&own, &ears, &heard));
    let own = hand.clone();
    std::thread::spawn(move || send(&own, &socket));
    Ok(heards)
}

fn send(hand: &Hand, socket: &UdpSocket) {
    loop {
        let holds = hand.holds.lock().unwrap_or_else(|e| e.into_inner()).clone();
        let beat = Beat { cluster: hand.config.cluster.clone(), node: hand.node.name.clone(), holds };
        let bytes = serde_json::to_vec(&beat).unwrap_or_default();
        for other in hand.config.nodes.iter().filter(|other| other.name != hand.node.name) {
            // Nobody there, or no way: that is what silence is for.
            let _ = socket.send_to(&bytes, other.beats);
        }
        std::thread::sleep(hand.config.timings.beat.0);
    }
}

fn listen(hand: &Hand, socket: &UdpSocket, heards: &Heards) {
    let mut bytes = [0; 65536];
    loop {
        // An error is an echo of a beat that nobody received.
        let Ok((length, from)) = socket.recv_from(&mut bytes) else { continue };
        let Ok(beat) = serde_json::from_slice::<Beat>(&bytes[..length]) else { continue };
        let known = hand.config.nodes.iter().any(|node| node.name == beat.node && node.beats.ip() == from.ip());
        if known && beat.cluster == hand.config.cluster {
            let heard = Heard { at: now_ms(), holds: beat.holds };
            heards.lock().unwrap_or_else(|e| e.into_inner()).insert(beat.node, heard);
        }
    }
}
