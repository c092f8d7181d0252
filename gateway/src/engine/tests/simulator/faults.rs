//! What happens next: somebody asks for something, or something goes wrong.

use super::{disk::Mood, run::Run, world::World};
use portarium_protocols::{
    adapter::{Report, Said, Speaker},
    ids::MissionId,
    mission::MissionStatus,
};

impl Run {
    pub(super) async fn turn(&mut self) {
        self.turn += 1;
        let dice = self.world.lock().random.u32(0..100);
        match dice {
            0..45 => self.dispatch(),
            45..55 => self.cancel(),
            55..63 => self.stop(),
            63..70 => self.operate(),
            70..76 => self.disk_changes(),
            76..82 => self.wire_breaks(),
            82..85 => self.power_goes(),
            85..89 => self.strange_word(),
            89..91 => self.clock_steps(),
            91..97 => self.crash_soon(),
            97 => self.restart_in_order().await,
            98 => self.connection_is_renewed(),
            _ => {}
        }
    }

    fn disk_changes(&self) {
        let mut world = self.world.lock();
        if !world.faults.disk {
            return;
        }
        let mood = match world.random.u32(0..8) {
            0 => Mood::Hangs,
            1 => Mood::Full,
            2 => Mood::Unsure,
            3 | 4 => Mood::Slow(world.millis(1..8_000)),
            _ => Mood::Well,
        };
        world.happens(format_args!("the disk: {mood:?}"));
        world.disk.becomes(mood);
    }

    fn wire_breaks(&self) {
        let mut world = self.world.lock();
        if !world.faults.wires {
            return;
        }
        let id = world.some_robot();
        world.cut(&id);
        let away = match world.random.u32(0..3) {
            0 => world.millis(0..20),
            1 => world.millis(20..2_000),
            _ => world.millis(2_000..120_000),
        };
        world.later(away, move |world| world.mend(&id));
    }

    fn connection_is_renewed(&self) {
        let mut world = self.world.lock();
        if world.faults.wires {
            let id = world.some_robot();
            world.renew(&id);
        }
    }

    fn power_goes(&self) {
        let mut world = self.world.lock();
        let id = world.some_robot();
        if !world.faults.power || !world.robot(&id).powered {
            return;
        }
        world.power_off(&id);
        let (noticed, away) = (world.millis(0..3_000), world.millis(3_000..60_000));
        let gone = id.clone();
        world.later(noticed, move |world| world.cut(&gone));
        world.later(away, move |world| {
            world.power_on(&id);
            let after = world.millis(0..2_000);
            world.later(after, move |world| world.mend(&id));
        });
    }

    /// A robot speaks of what is not its own, or was never sent to it.
    fn strange_word(&self) {
        let mut world = self.world.lock();
        if !world.faults.words {
            return;
        }
        let Some(mission) = world.some_entry(|_| true) else {
            return;
        };
        let entry = &world.book.entries[&mission];
        let (owner, unsent) = (entry.command.robot_id.clone(), entry.sends == 0);
        let status = MissionStatus::ALL[world.random.usize(0..7)];
        let mut robot = world.some_robot();
        if robot == owner && (!unsent || entry_may_have_left(&world, &mission)) {
            robot = "stranger".parse().unwrap();
        }
        world.strange_word(Report {
            speaker: Speaker::Robot(robot),
            said: Said::Now,
            mission,
            status,
            action_execution_id: "x".into(),
            observed_at: String::new(),
            detail: "strange".into(),
        });
    }

    fn clock_steps(&self) {
        let mut world = self.world.lock();
        if !world.faults.clock {
            return;
        }
        let by = world.random.i64(-7_200..7_200);
        world.stepped += by;
        world.stepped_back |= by < 0;
        world.happens(format_args!("the clock is stepped by {by} s"));
    }

    fn crash_soon(&self) {
        let mut world = self.world.lock();
        if world.faults.crashes {
            let effects = match world.random.bool() {
                true => world.random.u64(0..12),
                false => world.random.u64(0..200),
            };
            world.crash_in(effects);
        }
    }
}

/// It is on its way to the robot, or was: the robot may well speak of it.
fn entry_may_have_left(world: &World, mission: &MissionId) -> bool {
    let told = world.book.entries[mission].told.as_ref();
    told.is_none_or(|told| told.begun.is_some())
}
