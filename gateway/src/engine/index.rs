//! Missions by id and by key, in memory: the journal on disk has no index to keep.

use crate::journal::{Forgotten, LoadedMission, Mission};
use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::Arc,
};

/// Where a mission is found.
#[derive(Debug, Clone)]
pub(super) enum Found {
    /// In memory.
    Open(Arc<Mission>),
    /// In the journal, its last state at this position.
    Ended {
        /// Its number.
        number: u64,
        /// Where its last state is.
        position: u64,
    },
}

/// 128 bits of two keyed hashes stand for a key: two keys that meet are not to be expected in
/// the life of the universe, and nobody outside knows the hashes' keys.
type Hash = u128;

#[derive(Debug, Default)]
pub(super) struct Index {
    hashers: [RandomState; 2],
    slots: Vec<Option<Found>>,
    free: Vec<u32>,
    by_key: HashMap<Hash, u32>,
}

/// The keys of one mission.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keys<'a> {
    pub(super) mission_id: &'a str,
    pub(super) caller: &'a str,
    /// Empty on stops.
    pub(super) plan_key: &'a str,
    /// Empty on stops.
    pub(super) idempotency_key: &'a str,
}

impl<'a> Keys<'a> {
    pub(super) fn of(mission: &'a Mission) -> Self {
        let (plan_key, idempotency_key) = mission.keys();
        Self {
            mission_id: mission.command.mission_id.as_str(),
            caller: &mission.caller,
            plan_key,
            idempotency_key,
        }
    }
}

impl Index {
    /// By mission id, whoever asked for it.
    pub(super) fn by_mission_id(&self, mission_id: &str) -> Option<Found> {
        self.find(self.hash(("mission", mission_id)))
    }

    /// By the caller's plan key.
    pub(super) fn by_plan_key(&self, caller: &str, key: &str) -> Option<Found> {
        self.find(self.hash(("plan", caller, key)))
    }

    /// By the caller's idempotency key.
    pub(super) fn by_idempotency_key(&self, caller: &str, key: &str) -> Option<Found> {
        self.find(self.hash(("idempotency", caller, key)))
    }

    pub(super) fn insert(&mut self, mission: &Arc<Mission>) {
        self.put(Keys::of(mission), Found::Open(mission.clone()));
    }

    pub(super) fn load(&mut self, loaded: &LoadedMission) {
        let keys = Keys {
            mission_id: &loaded.mission_id,
            caller: &loaded.caller,
            plan_key: &loaded.plan_key,
            idempotency_key: &loaded.idempotency_key,
        };
        let found = match &loaded.ended {
            Ok(position) => Found::Ended {
                number: loaded.number,
                position: *position,
            },
            Err(mission) => Found::Open(mission.clone()),
        };
        self.put(keys, found);
    }

    /// A mission that was not accepted after all.
    pub(super) fn remove(&mut self, mission: &Mission) {
        self.take(
            Keys::of(mission),
            |found| matches!(found, Found::Open(open) if std::ptr::eq(&**open, mission)),
        );
    }

    /// From now on it is found on disk.
    pub(super) fn ended(&mut self, mission: &Mission, position: u64) {
        let hash = self.hash(("mission", mission.command.mission_id.as_str()));
        let Some(number) = mission.number() else {
            return;
        };
        if let Some(slot) = self.by_key.get(&hash)
            && let Some(entry) = self.slots.get_mut(*slot as usize)
        {
            *entry = Some(Found::Ended { number, position });
        }
    }

    /// No longer kept.
    pub(super) fn forgotten(&mut self, mission: &Forgotten) {
        let keys = Keys {
            mission_id: &mission.mission_id,
            caller: &mission.caller,
            plan_key: &mission.plan_key,
            idempotency_key: &mission.idempotency_key,
        };
        let forgotten = mission.number;
        self.take(
            keys,
            |found| matches!(found, Found::Ended { number, .. } if *number == forgotten),
        );
    }

    fn find(&self, hash: Hash) -> Option<Found> {
        let slot = *self.by_key.get(&hash)?;
        self.slots.get(slot as usize)?.clone()
    }

    fn put(&mut self, keys: Keys<'_>, found: Found) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        if let Some(entry) = self.slots.get_mut(slot as usize) {
            *entry = Some(found);
        }
        for hash in self.hashes(keys).into_iter().flatten() {
            self.by_key.insert(hash, slot);
        }
    }

    fn take(&mut self, keys: Keys<'_>, is_it: impl Fn(&Found) -> bool) {
        let hashes = self.hashes(keys);
        let Some(slot) = hashes[0].and_then(|hash| self.by_key.get(&hash).copied()) else {
            return;
        };
        let Some(entry) = self.slots.get_mut(slot as usize) else {
            return;
        };
        if !entry.as_ref().is_some_and(is_it) {
            return;
        }
        *entry = None;
        self.free.push(slot);
        for hash in hashes.into_iter().flatten() {
            if self.by_key.get(&hash) == Some(&slot) {
                self.by_key.remove(&hash);
            }
        }
    }

    fn hashes(&self, keys: Keys<'_>) -> [Option<Hash>; 3] {
        let some = |key: &'_ str, hash: Hash| (!key.is_empty()).then_some(hash);
        [
            Some(self.hash(("mission", keys.mission_id))),
            some(
                keys.plan_key,
                self.hash(("plan", keys.caller, keys.plan_key)),
            ),
            some(
                keys.idempotency_key,
                self.hash(("idempotency", keys.caller, keys.idempotency_key)),
            ),
        ]
    }

    fn hash(&self, key: impl std::hash::Hash) -> Hash {
        let [low, high] = [&self.hashers[0], &self.hashers[1]].map(|h| h.hash_one(&key));
        (Hash::from(high) << 64) | Hash::from(low)
    }
}
