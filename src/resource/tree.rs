//! Process trees: parents, sessions and groups, and the order of births that brings them back.
//!
//! A process can only be born into its forker's session, and can only lead a session of its own number. So a tree comes back
//! by a plan: who forks whom, and when. A session or group whose leader is gone needs a *ghost*: a process of the leader's
//! number that lives for the time of the restore.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::proc::Pid;

/// A process's place in its tree, all ids in the innermost pid namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its id.
    pub pid: Pid,
    /// Its parent.
    pub ppid: Pid,
    /// Its group.
    pub pgid: Pid,
    /// Its session.
    pub sid: Pid,
}

/// One step of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// We fork `0` ourselves.
    Spawn(Pid),
    /// `by` forks `pid`; with `sibling` its child becomes a child of its own parent.
    Fork {
        /// The forker.
        by: Pid,
        /// The new process.
        pid: Pid,
        /// CLONE_PARENT.
        sibling: bool,
    },
    /// `by` forks a helper, which forks `pid` and exits, so that the nearest subreaper adopts it.
    ForkOrphan {
        /// The forker.
        by: Pid,
        /// The new process.
        pid: Pid,
    },
    /// A process becomes the leader of a new session.
    Setsid(Pid),
    /// A process joins a group.
    Setpgid(Pid, Pid),
    /// A ghost ends; its parent (`None`: we) waits for it.
    End(Pid, Option<Pid>),
}

struct Planner<'a> {
    nodes: &'a [Node],
    taken: &'a dyn Fn(Pid) -> bool,
    steps: Vec<Step>,
    /// The session each living process is in.
    session: BTreeMap<Pid, Pid>,
    ghosts: Vec<(Pid, Option<Pid>)>,
    orphans: Vec<Node>,
    /// Sessions and groups that cannot be had: their members stay in what they inherit.
    lost: BTreeSet<Pid>,
}

/// A plan for `nodes` (root first, parents before children), and the sessions and groups that are inherited instead,
/// because their number is `taken` by a stranger.
pub fn plan(nodes: &[Node], taken: &dyn Fn(Pid) -> bool) -> (Vec<Step>, Vec<Pid>) {
    let mut planner = Planner { nodes, taken, steps: Vec::new(), session: BTreeMap::new(), ghosts: Vec::new(), orphans: Vec::new(), lost: BTreeSet::new() };
    let Some(root) = nodes.first() else { return (Vec::new(), Vec::new()) };
    planner.root(root);
    planner.grow(root);
    while let Some(orphan) = planner.orphans.pop() {
        planner.adopt(&orphan);
        planner.grow(&orphan);
    }
    planner.groups();
    for (ghost, reaper) in planner.ghosts.drain(..).rev() {
        planner.steps.push(Step::End(ghost, reaper));
    }
    (planner.steps, planner.lost.into_iter().collect())
}

impl Planner<'_> {
    fn node(&self, pid: Pid) -> Option<Node> {
        self.nodes.iter().find(|node| node.pid == pid).copied()
    }

    /// A number that nobody has and that is worth a ghost.
    fn can_haunt(&mut self, id: Pid) -> bool {
        let free = id > 1 && !(self.taken)(id);
        if !free {
            self.lost.insert(id);
        }
        free
    }

    fn root(&mut self, root: &Node) {
        if root.sid == root.pid || self.node(root.sid).is_some() || !self.can_haunt(root.sid) {
            self.steps.push(Step::Spawn(root.pid));
            self.session.insert(root.pid, if root.sid == root.pid { 0 } else { root.sid });
            return;
        }
        self.steps.extend([Step::Spawn(root.sid), Step::Setsid(root.sid), Step::Fork { by: root.sid, pid: root.pid, sibling: true }]);
        self.ghosts.push((root.sid, None));
        self.session.extend([(root.sid, root.sid), (root.pid, root.sid)]);
    }

    fn fork(&mut self, by: Pid, child: &Node, sibling: bool) {
        self.steps.push(Step::Fork { by, pid: child.pid, sibling });
        self.session.insert(child.pid, self.session[&by]);
    }

    /// Children of the session that `parent` was born into come first, then `parent` leads its own, then the others come.
    fn grow(&mut self, parent: &Node) {
        let children: Vec<Node> = self.nodes.iter().filter(|node| node.ppid == parent.pid && node.pid != parent.pid).copied().collect();
        let born_into = self.session[&parent.pid];
        let leads = parent.sid == parent.pid;
        let early = |child: &Node| leads && child.sid == born_into && child.sid != child.pid;
        for child in children.iter().filter(|child| early(child)) {
            self.fork(parent.pid, child, false);
        }
        if leads {
            self.steps.push(Step::Setsid(parent.pid));
            self.session.insert(parent.pid, parent.pid);
        }
        for child in children.iter().filter(|child| !early(child)) {
            let here = child.sid == child.pid || child.sid == self.session[&parent.pid] || self.lost.contains(&child.sid);
            if here {
                self.fork(parent.pid, child, false);
            } else {
                self.orphans.push(*child);
            }
        }
        for child in children.iter().filter(|child| self.session.contains_key(&child.pid)).copied().collect::<Vec<_>>() {
            self.grow(&child);
        }
    }

    /// A process whose session is neither its parent's nor its own: its first parent is dead.
    fn adopt(&mut self, orphan: &Node) {
        match self.node(orphan.sid) {
            Some(leader) if leader.ppid == orphan.ppid => self.fork(leader.pid, orphan, true),
            Some(leader) => {
                self.steps.push(Step::ForkOrphan { by: leader.pid, pid: orphan.pid });
                self.session.insert(orphan.pid, leader.pid);
            }
            None if self.session.contains_key(&orphan.sid) => self.fork(orphan.sid, orphan, true),
            None if self.can_haunt(orphan.sid) => {
                self.steps.extend([Step::Fork { by: orphan.ppid, pid: orphan.sid, sibling: false }, Step::Setsid(orphan.sid)]);
                self.session.insert(orphan.sid, orphan.sid);
                self.ghosts.push((orphan.sid, Some(orphan.ppid)));
                self.fork(orphan.sid, orphan, true);
            }
            None => self.fork(orphan.ppid, orphan, false),
        }
    }

    fn groups(&mut self) {
        let led: Vec<Node> = self.nodes.iter().filter(|node| node.pgid == node.pid && node.sid != node.pid).copied().collect();
        self.steps.extend(led.iter().map(|node| Step::Setpgid(node.pid, node.pid)));
        for node in self.nodes.iter().filter(|node| node.pgid != node.pid && node.sid != node.pid) {
            let exists = self.session.contains_key(&node.pgid);
            if !exists && self.lost.contains(&node.pgid) {
                continue;
            }
            if !exists {
                if !self.can_haunt(node.pgid) {
                    continue;
                }
                self.steps.extend([Step::Fork { by: node.pid, pid: node.pgid, sibling: false }, Step::Setpgid(node.pgid, node.pgid)]);
                self.session.insert(node.pgid, self.session[&node.pid]);
                self.ghosts.push((node.pgid, Some(node.pid)));
            }
            self.steps.push(Step::Setpgid(node.pid, node.pgid));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(pid: Pid, ppid: Pid, pgid: Pid, sid: Pid) -> Node {
        Node { pid, ppid, pgid, sid }
    }

    /// Plays a plan and returns what each process would say of itself.
    fn play(steps: &[Step]) -> BTreeMap<Pid, Node> {
        let mut all: BTreeMap<Pid, Node> = BTreeMap::new();
        for step in steps {
            match *step {
                Step::Spawn(pid) => drop(all.insert(pid, node(pid, 0, -1, -1))),
                Step::Fork { by, pid, sibling } => {
                    let parent = all[&by];
                    all.insert(pid, Node { pid, ppid: if sibling { parent.ppid } else { by }, ..parent });
                }
                Step::ForkOrphan { by, pid } => drop(all.insert(pid, Node { pid, ppid: -7, ..all[&by] })),
                Step::Setsid(pid) => {
                    assert_ne!(all[&pid].pgid, pid, "a group leader cannot lead a session");
                    let entry = all.get_mut(&pid).unwrap();
                    (entry.sid, entry.pgid) = (pid, pid);
                }
                Step::Setpgid(pid, pgid) => {
                    assert_eq!(all[&pgid].sid, all[&pid].sid, "a group lies in one session");
                    all.get_mut(&pid).unwrap().pgid = pgid;
                }
                Step::End(pid, _) => drop(all.remove(&pid)),
            }
        }
        all
    }

    fn check(nodes: &[Node]) {
        let (steps, lost) = plan(nodes, &|_| false);
        assert!(lost.is_empty(), "{lost:?}");
        let mut played = play(&steps);
        for node in nodes {
            assert_eq!(played.remove(&node.pid), Some(*node), "{steps:?}");
        }
        assert!(played.is_empty(), "ghosts remain: {played:?}");
    }

    #[test]
    fn a_leader_and_its_children() {
        check(&[node(10, 0, 10, 10), node(11, 10, 10, 10), node(12, 10, 12, 10), node(13, 12, 12, 10), node(14, 10, 14, 14)]);
    }

    #[test]
    fn a_daemon_whose_session_leader_is_dead() {
        check(&[node(10, 0, 9, 9), node(11, 10, 9, 9)]);
    }

    #[test]
    fn a_child_born_before_its_parent_led_a_session() {
        check(&[node(10, 0, 10, 10), node(11, 10, 11, 11), node(12, 11, 10, 10)]);
    }

    #[test]
    fn a_group_whose_leader_is_dead() {
        check(&[node(10, 0, 10, 10), node(12, 10, 11, 10), node(13, 10, 11, 10)]);
    }

    #[test]
    fn a_double_forked_daemon_under_a_subreaper() {
        check(&[node(10, 0, 10, 10), node(13, 10, 12, 12), node(14, 13, 12, 12)]);
    }

    #[test]
    fn an_orphan_beside_its_session_leader() {
        check(&[node(10, 0, 10, 10), node(12, 10, 12, 12), node(13, 10, 12, 12)]);
    }

    #[test]
    fn a_session_of_strangers_is_inherited() {
        let nodes = [node(10, 0, 5, 5), node(11, 10, 5, 5)];
        let (steps, lost) = plan(&nodes, &|pid| pid == 5);
        assert_eq!(lost, [5]);
        assert_eq!(steps, [Step::Spawn(10), Step::Fork { by: 10, pid: 11, sibling: false }]);
    }
}
