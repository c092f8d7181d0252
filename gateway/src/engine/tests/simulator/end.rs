//! The end of a run: all is well again, and nothing may stay behind.

use super::{super::make, book::Told, disk::Mood, run::Run};
use portarium_protocols::ids::{MissionId, RobotId};
use std::{sync::atomic::Ordering, time::Duration};
use tokio::time::sleep;

impl Run {
    /// All is well again: nothing stays behind.
    pub(super) async fn heal(&mut self) {
        {
            let mut world = self.world.lock();
            world.never_crash();
            world.faults = world.faults.end();
            world.healed = true;
            world.happens(format_args!("all is well again"));
            world.disk.becomes(Mood::Well);
            let ids: Vec<RobotId> = world.robots.keys().cloned().collect();
            for id in ids {
                world.power_on(&id);
                world.mend(&id);
            }
        }
        for round in 0..8 {
            sleep(Duration::from_secs(70)).await;
            self.look().await;
            if self.is_over() {
                return;
            }
            self.end_what_is_unknown();
            if round > 0 {
                let open = self.open_missions();
                open.into_iter().for_each(|id| self.cancel_one(id));
            }
        }
        self.world.lock().judge_ends();
        self.last_missions().await;
    }

    fn open_missions(&self) -> Vec<MissionId> {
        let world = self.world.lock();
        let open = |told: &Told| told.ended.is_none() && !told.state.outcome_unknown;
        let entries = world.book.entries.iter();
        entries
            .filter(|(_, e)| e.told.as_ref().is_some_and(open))
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// Released, each robot takes a mission again.
    async fn last_missions(&mut self) {
        for spec in self.specs.clone() {
            self.release(spec.id.clone());
            sleep(Duration::from_secs(30)).await;
            let id = format!("last-{}", spec.id);
            self.ask("last".into(), make::mission(spec.id.as_str(), &id));
            sleep(Duration::from_secs(30)).await;
            self.look().await;
            let mut world = self.world.lock();
            let told = world.book.entries[&*id].told.as_ref();
            if told.is_none_or(|told| told.begun.is_none()) {
                world.broken(format_args!("{} takes no mission any more", spec.id));
            }
        }
        let inner = &self.engine().inner;
        let open = inner.open.load(Ordering::Relaxed);
        let waits = inner.journal.backlog();
        let mut world = self.world.lock();
        let last = world.book.entries.values();
        let really = last.filter(|e| e.told.as_ref().is_some_and(|t| t.ended.is_none()));
        let really = really.count();
        if open != really {
            world.broken(format_args!(
                "{open} missions are counted, {really} are open"
            ));
        }
        if waits > 0 {
            world.broken(format_args!("{waits} are said to wait for the disk"));
        }
    }
}
