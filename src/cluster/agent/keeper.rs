//! The lease: renewed here, while its deadline is kept by the warden.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

use super::hand::Hand;
use super::News;
use crate::cluster::now_ms;
use crate::cluster::state::State;
use crate::cluster::warden::Order;
use crate::error::{Context, Result};

/// Joins the cluster and keeps the lease, for good.
pub fn start(hand: &Arc<Hand>, state: Arc<dyn State>) {
    let hand = hand.clone();
    std::thread::spawn(move || {
        let mut keeper = Keeper { hand: &hand, state: &*state, renewed: 0, away: false };
        loop {
            let begun = now_ms();
            keeper.round();
            let rest = hand.config.timings.renew.as_ms().saturating_sub(now_ms() - begun);
            std::thread::sleep(Duration::from_millis(rest));
        }
    });
}

struct Keeper<'a> {
    hand: &'a Hand,
    state: &'a dyn State,
    /// When the last acknowledged renewal was sent.
    renewed: u64,
    /// It was said that the store is away.
    away: bool,
}

impl Keeper<'_> {
    fn round(&mut self) {
        let lease = self.hand.lease.load(Ordering::Relaxed);
        if lease == 0 {
            match self.join() {
                Err(e) if !self.away => {
                    self.hand.say("", &format!("cannot join, and tries again: {e}"));
                    self.away = true;
                }
                Err(_) => {}
                Ok(()) => self.away = false,
            }
            return;
        }
        let sent = now_ms();
        match self.state.renew(lease) {
            Ok(true) => self.acknowledged(sent),
            Ok(false) => self.lost("the store ended the lease"),
            Err(_) if now_ms() > self.renewed + self.hand.config.timings.ttl.as_ms() => self.lost("no renewal was acknowledged for the length of the lease"),
            Err(e) => self.hand.say("", &format!("a renewal failed: {e}")),
        }
    }

    fn join(&mut self) -> Result<()> {
        let sent = now_ms();
        let lease = self.state.grant(self.hand.config.timings.ttl.0)?;
        self.hand.lease.store(lease, Ordering::Relaxed);
        self.acknowledged(sent);
        let joined = self.hand.announce_specs().and_then(|()| self.hand.announce_node(false));
        if joined.is_err() {
            self.lost("the store went away");
            return joined;
        }
        let _ = self.hand.news.send(News::Joined);
        self.hand.say("", "joined");
        Ok(())
    }

    fn acknowledged(&mut self, sent: u64) {
        self.renewed = sent;
        let until = sent + self.hand.config.timings.deadline().as_millis() as u64;
        self.hand.until.store(until, Ordering::Relaxed);
        self.hand.warden.order(&Order::Until(until));
    }

    /// What the lease owned must end before anything else is done.
    fn lost(&mut self, why: &str) {
        self.hand.say("", &format!("lost the lease: {why}"));
        self.hand.lease.store(0, Ordering::Relaxed);
        let _ = self.hand.news.send(News::Lost);
        self.hand.warden.order(&Order::Fence);
    }
}

/// Blocks the signals that ask us to leave; before any thread exists.
pub fn block_signals() -> Result<SigSet> {
    let mut set = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].iter().for_each(|signal| set.add(*signal));
    set.thread_block().context("cannot block signals")?;
    Ok(set)
}

/// Passes such a signal on.
pub fn watch_signals(hand: &Arc<Hand>, signals: SigSet) {
    let hand = hand.clone();
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            let _ = hand.news.send(News::Leave);
        }
    });
}
