//! How many calls of one kind may be under way at a time, over all callers and of one.

use crate::policy::Caller;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Places for calls of one kind. One caller has at most half of them: it shall not keep all
/// others out.
#[derive(Debug)]
pub(super) struct Places {
    of_one: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_caller: HashMap<Caller, usize>,
}

impl Places {
    /// So many for one caller, and twice as many in all.
    pub(super) fn new(of_one: usize) -> Arc<Self> {
        Arc::new(Self {
            of_one,
            taken: Mutex::default(),
        })
    }

    /// A place, if there is one.
    pub(super) fn enter(self: &Arc<Self>, caller: Caller) -> Option<Place> {
        let mut taken = self.lock();
        let theirs = taken.by_caller.get(&caller).copied().unwrap_or_default();
        if theirs >= self.of_one || taken.all >= 2 * self.of_one {
            return None;
        }
        taken.all += 1;
        taken.by_caller.insert(caller.clone(), theirs + 1);
        Some(Place {
            places: self.clone(),
            caller,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One call's place; dropping it leaves.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    caller: Caller,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all -= 1;
        if let Some(theirs) = taken.by_caller.get_mut(&self.caller) {
            *theirs -= 1;
            if *theirs == 0 {
                taken.by_caller.remove(&self.caller);
            }
        }
    }
}
