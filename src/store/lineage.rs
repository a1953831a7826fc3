//! Which frame of a name builds upon which.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use super::FrameRef;
use crate::error::{Error, Kind, Result};
use crate::image::{FrameId, Header};

/// All frames of one name, with what their headers say.
#[derive(Debug)]
pub struct Lineage {
    /// Sorted by number.
    members: Vec<Member>,
    /// Several frames have the same id where somebody copied a file.
    by_id: HashMap<FrameId, Vec<usize>>,
}

#[derive(Debug)]
struct Member {
    frame: FrameRef,
    header: Result<Header>,
}

/// What a frame builds upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parent {
    /// Nothing: it is full.
    None,
    /// Another frame of its name.
    Frame(FrameRef),
    /// A frame that is not there.
    Missing(FrameId),
}

impl Lineage {
    /// Frames sorted by number, each with its header, or why it cannot be read.
    pub fn new(frames: impl IntoIterator<Item = (FrameRef, Result<Header>)>) -> Self {
        let members: Vec<Member> = frames.into_iter().map(|(frame, header)| Member { frame, header }).collect();
        let mut by_id: HashMap<FrameId, Vec<usize>> = HashMap::new();
        for (at, member) in members.iter().enumerate() {
            if let Ok(header) = &member.header {
                by_id.entry(header.id).or_default().push(at);
            }
        }
        Lineage { members, by_id }
    }

    /// What a frame builds upon; nothing is known of a frame whose header cannot be read.
    pub fn parent(&self, frame: &FrameRef) -> Option<Parent> {
        let at = self.find(frame)?;
        let header = self.members[at].header.as_ref().ok()?;
        Some(match (header.parent, self.above(at)) {
            (None, _) => Parent::None,
            (Some(_), Some(parent)) => Parent::Frame(self.members[parent].frame.clone()),
            (Some(id), None) => Parent::Missing(id),
        })
    }

    /// The frame and those below it, as far as they are there, the newest first.
    pub fn chain(&self, frame: &FrameRef) -> Vec<FrameRef> {
        let mut seen = HashSet::new();
        // Damage may lead in circles.
        let chain = std::iter::successors(self.find(frame), |&at| self.above(at)).take_while(|&at| seen.insert(at));
        chain.map(|at| self.members[at].frame.clone()).collect()
    }

    fn find(&self, frame: &FrameRef) -> Option<usize> {
        self.members.binary_search_by(|member| member.frame.cmp(frame)).ok()
    }

    /// The parent of a member; of several copies the oldest.
    fn above(&self, at: usize) -> Option<usize> {
        let parent = self.members[at].header.as_ref().ok()?.parent?;
        self.by_id.get(&parent).map(|copies| copies[0])
    }

    /// All but the newest `keep` frames and those that they build upon, in the order of [`Lineage::removal`].
    pub fn surplus(&self, keep: usize) -> Vec<FrameRef> {
        let mut kept: HashSet<usize> = HashSet::new();
        let mut next: Vec<usize> = (self.members.len().saturating_sub(keep)..self.members.len()).collect();
        while let Some(at) = next.pop() {
            if kept.insert(at) {
                let parent = self.members[at].header.as_ref().ok().and_then(|header| header.parent);
                next.extend(parent.and_then(|id| self.by_id.get(&id)).into_iter().flatten());
            }
        }
        let frames = self.members.iter().enumerate().filter(|(at, _)| !kept.contains(at));
        self.ordered(frames.map(|(at, _)| at).collect())
    }

    /// The order in which frames may go: the oldest chain first, and in a chain every child before its parent. Refused where a
    /// frame that stays builds upon one of them.
    pub fn removal(&self, frames: &[FrameRef]) -> Result<Vec<FrameRef>> {
        let doomed: HashSet<usize> = frames.iter().filter_map(|frame| self.find(frame)).collect();
        let going = |id: &FrameId| self.by_id.get(id).is_some_and(|copies| copies.iter().all(|at| doomed.contains(at)));
        for (_, child) in self.members.iter().enumerate().filter(|(at, _)| !doomed.contains(at)) {
            match &child.header {
                Ok(Header { parent: Some(id), .. }) if going(id) => return Err(needed(&self.members[self.by_id[id][0]].frame, &child.frame)),
                // A frame whose header is damaged is lost anyway; one that cannot be looked at may be whole.
                Err(e) if e.kind() != Kind::Corrupt && e.kind() != Kind::NotFound => {
                    return Err(Error::new(e.kind(), format!("cannot tell what {} builds upon: {e}", child.frame)));
                }
                _ => {}
            }
        }
        Ok(self.ordered(doomed))
    }

    fn ordered(&self, doomed: HashSet<usize>) -> Vec<FrameRef> {
        let place = |&at: &usize| {
            let up = |&at: &usize| self.above(at).filter(|above| doomed.contains(above));
            let (depth, root) = std::iter::successors(Some(at), up).take(self.members.len()).enumerate().last().unwrap_or((0, at));
            (root, Reverse(depth), at)
        };
        let mut order: Vec<usize> = doomed.iter().copied().collect();
        order.sort_by_cached_key(place);
        order.into_iter().map(|at| self.members[at].frame.clone()).collect()
    }
}

fn needed(frame: &FrameRef, child: &FrameRef) -> Error {
    Error::refused(format!("{frame} cannot be removed: {child} builds upon it; remove {child} first, or make it a full frame: stillframe compact {child}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames by (number, id, parent's id); 0 is none.
    fn lineage(frames: &[(u64, u8, u8)]) -> Lineage {
        let id = |n: u8| (n > 0).then_some(FrameId([n; 16]));
        Lineage::new(frames.iter().map(|&(seq, own, parent)| {
            let header = id(own).map(|own| Header { id: own, ..Header::new(id(parent)) });
            (frame(seq), header.ok_or_else(|| Error::corrupt("damaged")))
        }))
    }

    fn frame(seq: u64) -> FrameRef {
        FrameRef::new("web", seq).unwrap()
    }

    fn numbers(frames: &[FrameRef]) -> Vec<u64> {
        frames.iter().map(FrameRef::seq).collect()
    }

    #[test]
    fn the_newest_are_kept_with_all_they_need() {
        // Two chains, 1-2-4 and 3-5-6, and 7 on its own.
        let lineage = lineage(&[(1, 1, 0), (2, 2, 1), (3, 3, 0), (4, 4, 2), (5, 5, 3), (6, 6, 5), (7, 7, 0)]);
        assert_eq!(numbers(&lineage.surplus(1)), [4, 2, 1, 6, 5, 3]);
        assert_eq!(numbers(&lineage.surplus(2)), [4, 2, 1]);
        assert_eq!(numbers(&lineage.surplus(3)), [4, 2, 1]);
        assert_eq!(numbers(&lineage.surplus(4)), [0; 0]);
        assert_eq!(numbers(&lineage.chain(&frame(6))), [6, 5, 3]);
        assert_eq!((lineage.parent(&frame(6)), lineage.parent(&frame(7))), (Some(Parent::Frame(frame(5))), Some(Parent::None)));
    }

    #[test]
    fn what_a_child_needs_stays() {
        let lineage = lineage(&[(1, 1, 0), (2, 2, 1), (3, 3, 2), (4, 4, 2)]);
        let error = lineage.removal(&[frame(2), frame(3)]).unwrap_err();
        assert_eq!(error.kind(), Kind::Refused);
        assert!(error.to_string().contains("web@2 cannot be removed: web@4 builds upon it; remove web@4 first"), "{error}");
        assert_eq!(numbers(&lineage.removal(&[frame(1), frame(2), frame(3), frame(4)]).unwrap()), [3, 4, 2, 1]);
        assert_eq!(numbers(&lineage.removal(&[frame(3)]).unwrap()), [3]);
    }

    #[test]
    fn copies_stand_in_for_one_another() {
        let lineage = lineage(&[(1, 1, 0), (2, 2, 1), (3, 1, 0)]);
        assert_eq!(numbers(&lineage.removal(&[frame(1)]).unwrap()), [1]);
        assert!(lineage.removal(&[frame(1), frame(3)]).is_err());
    }

    #[test]
    fn damage_neither_loops_nor_keeps_a_frame_alive() {
        let circle = lineage(&[(1, 1, 2), (2, 2, 1), (3, 0, 0), (4, 4, 9)]);
        assert_eq!(numbers(&circle.chain(&frame(1))), [1, 2]);
        assert_eq!(circle.parent(&frame(3)), None);
        assert_eq!(circle.parent(&frame(4)), Some(Parent::Missing(FrameId([9; 16]))));
        assert_eq!(circle.surplus(2).len(), 2);
        assert!(circle.removal(&[frame(1)]).is_err());
        assert_eq!(circle.removal(&[frame(1), frame(2), frame(3), frame(4)]).unwrap().len(), 4);
        let unread = Lineage::new([(frame(1), Ok(Header::new(None))), (frame(2), Err(Error::new(Kind::Io, "the disk is on fire")))]);
        assert!(unread.removal(&[frame(1)]).unwrap_err().to_string().contains("cannot tell what web@2 builds upon"));
        assert_eq!(numbers(&unread.removal(&[frame(2)]).unwrap()), [2]);
    }
}
