//! Random lives of renders under [`decide`] and [`Phase`]: submitted, paused, cancelled, given other priorities, with
//! workers that come and go, and sessions that take their time to leave.
//!
//! Checked after every event:
//! 1. No more renders hold a place than there are places.
//! 2. A cancelled render stays cancelled, a finished one finished.
//! 3. A session lives exactly for a render that holds a place.
//! 4. At rest, no render that a worker could do waits while a place is free or held without workers.
//! 5. At rest, no render that waits has a higher priority than one that holds a place.
//! 6. At rest, of two equals that a worker could do the earlier has not been passed over for a place.

use std::time::{Duration, Instant};

use super::super::JobChange;
use super::super::phase::{Effect, End, Outcome, Phase};
use super::*;

struct Render {
    id: String,
    order: u64,
    priority: i32,
    model: usize,
    phase: Phase,
    /// A session lives.
    session: bool,
    unfit: Option<Instant>,
    /// Got its place when.
    started: u64,
}

struct World {
    draws: u64,
    now: Instant,
    places: usize,
    workers: [bool; 3],
    renders: Vec<Render>,
    starts: u64,
}

impl World {
    fn below(&mut self, n: u64) -> u64 {
        self.draws =
            self.draws.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.draws >> 33) % n
    }

    fn any(&mut self) -> Option<usize> {
        let count = self.renders.len() as u64;
        (count > 0).then(|| self.below(count) as usize)
    }

    fn event(&mut self) {
        let pause = Duration::from_millis(self.below(9000));
        self.now += pause;
        let what = self.below(10);
        match what {
            0 | 1 if self.renders.len() < 12 => {
                let (order, model) = (self.renders.len() as u64, self.below(3) as usize);
                let priority = self.below(3) as i32;
                let (phase, id) = (Phase::Queued, format!("r{order}"));
                let (session, unfit, started) = (false, None, 0);
                self.renders.push(Render { id, order, priority, model, phase, session, unfit, started });
            }
            2 => {
                let model = self.below(3) as usize;
                self.workers[model] = !self.workers[model];
            }
            3 | 4 => {
                if let Some(i) = self.any() {
                    let outcome = match self.below(6) {
                        0 => Outcome::Done,
                        1 => Outcome::Failed("a reason".into()),
                        2 => Outcome::Lost("another".into()),
                        3 => Outcome::Stuck("three times".into()),
                        _ => Outcome::Left,
                    };
                    let render = &mut self.renders[i];
                    if render.session {
                        render.session = false;
                        render.phase.session_ended(outcome);
                    }
                }
            }
            5 => {
                if let Some(i) = self.any() {
                    self.renders[i].phase.fail_task("a task".into());
                }
            }
            _ => {
                let change = match self.below(4) {
                    0 => JobChange::Pause,
                    1 => JobChange::Continue,
                    2 => JobChange::Cancel,
                    _ => JobChange::Priority(self.below(3) as i32),
                };
                if let Some(i) = self.any() {
                    let render = &mut self.renders[i];
                    let effect = render.phase.change(change);
                    if let (Ok(Effect::Store), JobChange::Priority(priority)) = (effect, change) {
                        render.priority = priority;
                    }
                    if effect == Ok(Effect::Abort) {
                        render.session = false;
                        render.phase.session_ended(Outcome::Left);
                    }
                }
            }
        }
    }

    fn look(&mut self) -> Vec<(bool, String)> {
        for render in &mut self.renders {
            let fit = self.workers[render.model];
            render.unfit = if fit { None } else { render.unfit.or(Some(self.now)) };
        }
        let held = |r: &&Render| matches!(r.phase, Phase::Queued) || r.phase.has_place();
        let candidates: Vec<_> = self.renders.iter().filter(held).map(candidate).collect();
        let decisions = decide(&candidates, self.places, self.now);
        decisions
            .into_iter()
            .map(|d| match d {
                Decision::Start(id) => (true, id.to_owned()),
                Decision::Leave(id) => (false, id.to_owned()),
            })
            .collect()
    }

    fn perform(&mut self) -> bool {
        let decisions = self.look();
        for (starts, id) in &decisions {
            self.starts += 1;
            let render = self.renders.iter_mut().find(|r| r.id == *id).expect("a render of ours");
            if *starts {
                assert_eq!(render.phase, Phase::Queued);
                (render.phase, render.session, render.started) = (Phase::Starting, true, self.starts);
            } else {
                assert!(matches!(render.phase, Phase::Starting | Phase::Running));
                render.phase = Phase::Leaving(super::super::phase::Next::Queue);
            }
        }
        !decisions.is_empty()
    }

    /// Lets everything come to rest: sessions that are told to leave do so.
    fn rest(&mut self) {
        for _ in 0..100 {
            let changed = self.perform();
            let mut left = false;
            for render in &mut self.renders {
                if matches!(render.phase, Phase::Leaving(_)) {
                    (render.session, left) = (false, true);
                    render.phase.session_ended(Outcome::Left);
                }
            }
            if !changed && !left {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn check(&self) {
        let held = self.renders.iter().filter(|r| r.phase.has_place()).count();
        assert!(held <= self.places, "1: {held} of {} places", self.places);
        for render in &self.renders {
            assert_eq!(render.session, render.phase.has_place(), "3: {} {:?}", render.id, render.phase);
        }
    }

    fn check_at_rest(&self) {
        let held: Vec<&Render> = self.renders.iter().filter(|r| r.phase.has_place()).collect();
        let is_gone = |r: &Render| r.unfit.is_some_and(|since| self.now.duration_since(since) >= GRACE);
        let waiting = self.renders.iter().filter(|r| r.phase == Phase::Queued && r.unfit.is_none());
        for render in waiting {
            assert!(held.len() == self.places, "4: {} waits beside a free place", render.id);
            assert!(!held.iter().any(|h| is_gone(h)), "4: {} waits for a render without workers", render.id);
            for holder in &held {
                assert!(holder.priority >= render.priority, "5: {} is before {}", holder.id, render.id);
            }
        }
    }
}

fn candidate(render: &Render) -> Candidate<'_> {
    Candidate {
        id: &render.id,
        priority: render.priority,
        order: render.order,
        has_place: render.phase.has_place(),
        leaves: matches!(render.phase, Phase::Leaving(_)),
        unfit: render.unfit,
    }
}

#[test]
fn nobody_starves_and_what_has_ended_stays_so() {
    for seed in 0..2000 {
        let mut world = World {
            draws: seed,
            now: Instant::now(),
            places: 1 + seed as usize % 3,
            workers: [true; 3],
            renders: Vec::new(),
            starts: 0,
        };
        for _ in 0..120 {
            let before: Vec<Phase> = world.renders.iter().map(|r| r.phase.clone()).collect();
            world.event();
            for (before, render) in before.iter().zip(&world.renders) {
                if matches!(before, Phase::Ended(End::Cancelled | End::Done)) {
                    assert_eq!(*before, render.phase, "2: seed {seed}");
                }
            }
            world.check();
            if world.below(3) == 0 {
                // Long enough for workers that have gone to be given up.
                world.look();
                world.now += GRACE;
                world.rest();
                world.check();
                world.check_at_rest();
            } else {
                world.perform();
                world.check();
            }
        }
        first_come_first_served(&mut world);
    }
}

/// Of equals, all of which a worker could do, none is passed over.
fn first_come_first_served(world: &mut World) {
    world.workers = [true; 3];
    world.renders.iter_mut().for_each(|r| r.priority = 0);
    for _ in 0..40 {
        world.rest();
        let waiting = world.renders.iter().filter(|r| r.phase == Phase::Queued).map(|r| r.order).min();
        let Some(first) = waiting else { break };
        let Some(i) = world.renders.iter().position(|r| r.session) else { break };
        (world.renders[i].session, _) = (false, world.renders[i].phase.session_ended(Outcome::Done));
        world.perform();
        let next = world.renders.iter().find(|r| r.order == first).expect("it waits");
        assert!(next.phase.has_place(), "6: {} is passed over", next.id);
    }
    let waits = world.renders.iter().filter(|r| r.phase == Phase::Queued).count();
    assert_eq!(waits, 0, "everybody gets a place in the end");
}
