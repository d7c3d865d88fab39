//! Names from the running kernel, for decoding live events.

use std::{collections::HashMap, sync::Arc};

use aya::maps::{MapData, StackTraceMap};
use netprobe_common::owner::Owner;

use super::{
    drop_reasons::DropReasons,
    own_frames::without_own,
    reset_reasons::ResetReasons,
    sampler,
    session::Session,
    symbols::{Symbol, Symbols},
};
use crate::{
    decode::{Arrival, Names},
    observe::{
        cgroups::{self, Paths},
        clock::{now_ns, wall_offset_ns},
        listeners::Listeners,
        owners::Owners,
    },
    report::Value,
};

/// Looks names up in the running kernel and in `/proc`.
pub struct LiveNames {
    reasons: DropReasons,
    reset_reasons: ResetReasons,
    symbols: Symbols,
    places: HashMap<u64, Value>,
    stacks: Option<StackTraceMap<MapData>>,
    stack_depth: usize,
    owners: Owners,
    listeners: Listeners,
    cgroups: Paths,
    has_socket_cgroups: bool,
    shows_offsets: bool,
    names_places: bool,
    clock_offset_ns: i64,
    /// The time that is asked about.
    at_ns: u64,
}

impl LiveNames {
    /// Of the kernel that a session runs in; reads what can be read before the first event.
    pub fn of(session: &Session, stacks: Option<StackTraceMap<MapData>>) -> Self {
        Self {
            reasons: session.drop_reasons().clone(),
            reset_reasons: session.reset_reasons().clone(),
            symbols: Symbols::new(),
            places: HashMap::new(),
            stacks,
            stack_depth: session.stack_depth(),
            owners: Owners::default(),
            listeners: Listeners::default(),
            cgroups: Paths::default(),
            has_socket_cgroups: session.has_socket_cgroups(),
            shows_offsets: false,
            names_places: true,
            clock_offset_ns: wall_offset_ns(),
            at_ns: now_ns(),
        }
    }

    /// Learns who holds the sockets that are there already, so that they are known when they are gone, and
    /// which of them listen. Owners are looked for with half of `limit`, a share of the
    /// machine.
    pub fn learn_owners(&mut self, limit: f64) {
        self.owners = Owners::default().limited(limit * f64::from(sampler::online()) / 2.0);
        self.owners.learn();
        self.listeners.learn();
    }

    /// Learns which sockets listen by now and who holds them, where that is asked at the end only.
    pub fn refresh_listeners(&mut self) {
        self.listeners.refresh(&mut self.owners);
    }

    /// Learns which control groups there are by now, where that is asked at the end only.
    pub fn refresh_cgroups(&mut self) {
        self.cgroups.look();
    }

    /// Shows the frames of stacks as `function+0xoffset`.
    #[must_use]
    pub fn with_offsets(self, shows_offsets: bool) -> Self {
        Self {
            shows_offsets,
            ..self
        }
    }

    /// Gives places in the kernel their names from now on, or leaves them the numbers that they are: to read the names takes
    /// tens of milliseconds of CPU time.
    pub fn name_places(&mut self, is_wanted: bool) {
        self.names_places = is_wanted;
    }

    /// Learns the names of functions, and those of the programs that are attached now.
    pub fn learn_symbols(&mut self) {
        self.symbols.learn();
    }

    /// Frames of a stack for a graph, innermost first, without those of BPF itself.
    pub fn drawn_frames(&mut self, id: i32) -> Option<Vec<Arc<str>>> {
        self.frames(id, Symbol::drawn)
    }

    fn frames(&mut self, id: i32, name: impl Fn(Symbol) -> Arc<str>) -> Option<Vec<Arc<str>>> {
        let stacks = self.stacks.as_ref()?;
        let stack = stacks.get(&u32::try_from(id).ok()?, 0).ok()?;
        let frames = stack.frames().iter();
        let frames: Vec<Arc<str>> = frames
            .map(|frame| name(self.symbols.lookup(frame.ip)))
            .collect();
        let mut frames_of_kernel = without_own(&frames).to_vec();
        if frames.len() >= self.stack_depth {
            frames_of_kernel.push(Arc::from("[truncated]"));
        }
        Some(frames_of_kernel)
    }

    /// Reads the clock again, which may have been set meanwhile.
    pub fn refresh_clock(&mut self) {
        self.clock_offset_ns = wall_offset_ns();
    }
}

impl Names for LiveNames {
    fn at(&mut self, monotonic_ns: Option<u64>) {
        self.at_ns = monotonic_ns.unwrap_or_else(now_ns);
    }

    fn drop_reason(&mut self, code: u32) -> Value {
        self.reasons.name(code)
    }

    fn reset_reason(&mut self, code: u32) -> Value {
        self.reset_reasons.name(code)
    }

    fn symbol(&mut self, address: u64) -> Value {
        if !self.names_places {
            return Value::Unsigned(address);
        }
        if let Some(place) = self.places.get(&address) {
            return place.clone();
        }
        let symbol = self.symbols.lookup(address);
        let text = if symbol.is_known {
            format!("{}+{:#x}", symbol.function, symbol.offset)
        } else {
            symbol.function.to_string()
        };
        let place = Value::Text(Arc::from(text));
        self.places.insert(address, place.clone());
        place
    }

    fn stack(&mut self, id: i32) -> Value {
        let shows_offsets = self.shows_offsets;
        let frames = self.frames(id, |symbol| {
            if shows_offsets && symbol.is_known {
                Arc::from(format!("{}+{:#x}", symbol.function, symbol.offset))
            } else {
                symbol.function
            }
        });
        match frames {
            Some(frames) => Value::Stack(Arc::from(frames)),
            None => Value::Unknown,
        }
    }

    fn owner(&mut self, owner: &Owner) -> Option<(u32, [u8; 16])> {
        let noted = (owner.pid != 0).then_some((owner.pid, owner.comm));
        // Who was noted may have handed the socket to another process, such as a child, and have ended.
        if noted.is_some() && (owner.is_open == 0 || self.owners.has(owner.pid, self.at_ns)) {
            return noted;
        }
        self.owners.of(owner.ino, self.at_ns).or(noted)
    }

    fn cgroup(&mut self, owner: &Owner) -> Value {
        let path = if owner.cgroup != 0 {
            Some(self.cgroups.name(owner.cgroup))
        } else if self.has_socket_cgroups {
            None
        } else {
            // What this kernel does not keep of the socket, the process is asked for.
            self.owner(owner)
                .and_then(|(pid, _comm)| cgroups::of_process(pid))
        };
        path.map_or(Value::Unknown, Value::Text)
    }

    fn listener(&mut self, arrival: &Arrival) -> Option<(u32, [u8; 16])> {
        self.listeners.of(arrival, self.at_ns, &mut self.owners)
    }

    fn clock_offset_ns(&self) -> i64 {
        self.clock_offset_ns
    }
}
