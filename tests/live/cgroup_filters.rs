//! Filters by control group where no program in the kernel tests them: connections that are listed,
//! and sockets that do not know their group.

use std::collections::BTreeSet;

use netprobe_tests::{
    cgroup::Cgroup,
    event::{Event, number, text},
    netns::Cable,
    probe::open_connections,
    process::Actor,
    skip::is_root,
    traffic::Family,
};
use socket2::Socket;

const PORT: u16 = 7671;

/// Process and group of an event.
type Place = (u64, String);

/// Processes with a connection each, until they are told to close it: one outside of a group, one in
/// it, one in a group below.
struct Residents {
    actors: [Actor; 3],
    far: Vec<Socket>,
    cable: Cable,
    // After the processes in them.
    child: Cgroup,
    group: Cgroup,
}

impl Residents {
    /// None where there are no groups.
    fn new() -> Option<Self> {
        let group = Cgroup::new()?;
        let child = group.child("below");
        let cable = Cable::new();
        let listener = cable.server.run(|| Family::V4.listen(PORT, 8));
        let actors = [None, Some(&group), Some(&child)].map(|group| {
            let mut actor = Actor::start("np-resident", |stage| {
                cable.client.enter();
                if let Some(group) = group {
                    group.enter();
                }
                let connection = Family::V4.connect(PORT).expect("connect");
                stage.tell(b'.');
                stage.await_byte();
                drop(connection);
            });
            actor.hear();
            actor
        });
        let accept = |_: &Actor| listener.accept().expect("accept").0;
        Some(Self {
            far: actors.iter().map(accept).collect(),
            actors,
            cable,
            child,
            group,
        })
    }

    /// Lets them close their connections.
    fn leave(&mut self) {
        for actor in &mut self.actors {
            actor.cue();
            actor.hear();
        }
        self.far.clear();
        self.cable.client.wait_for_silence();
    }

    fn inside(&self) -> BTreeSet<Place> {
        let [_, here, below] = self.actors.each_ref().map(Actor::pid);
        BTreeSet::from([(here, self.group.path()), (below, self.child.path())])
    }

    fn outside(&self) -> BTreeSet<u64> {
        BTreeSet::from([self.actors[0].pid()])
    }
}

fn places(events: &[Event]) -> BTreeSet<Place> {
    let places = events
        .iter()
        .map(|event| (number(event, "pid"), text(event, "cgroup").to_owned()));
    places.collect()
}

fn pids(events: &[Event]) -> BTreeSet<u64> {
    events.iter().map(|event| number(event, "pid")).collect()
}

#[test]
fn open_connections_of_a_cgroup_are_those_of_it_and_of_the_groups_below() {
    if !is_root() {
        return;
    }
    let Some(residents) = Residents::new() else {
        return;
    };
    let open = |arguments: &[&str]| open_connections(&residents.cable.client, arguments);
    let path = residents.group.path();
    assert_eq!(places(&open(&["--cgroup", &path])), residents.inside());
    let others = open(&["--filter", &format!("cgroup != {path}")]);
    assert_eq!(pids(&others), residents.outside());
    let below = open(&["--cgroup", &residents.child.path()]);
    assert_eq!(below.len(), 1, "{below:?}");
}

/// What cannot be taken back: only for a machine that is thrown away afterwards.
mod spoiling {
    use std::fs;

    use netprobe_tests::{
        probe::Probe,
        skip::{has_hooks, skip},
    };

    use std::process::Command;

    use super::{Event, Residents, pids, places};

    /// Uses the class of version 1: from then on kernels up to 5.15 keep it in a new socket instead
    /// of the group.
    fn use_net_cls() -> Result<(), String> {
        let folder = "/tmp/net_cls";
        fs::create_dir_all(folder).map_err(|why| why.to_string())?;
        Command::new("mount")
            .args(["-t", "cgroup", "-o", "net_cls", "none", folder])
            .output()
            .map_err(|why| why.to_string())?;
        let group = format!("{folder}/np-class");
        fs::create_dir(&group)
            .and_then(|()| fs::write(format!("{group}/net_cls.classid"), "65537"))
            .map_err(|why| format!("no net_cls here: {why}"))
    }

    #[test]
    #[ignore = "takes the cgroup from sockets until it boots again; the matrix runs it last"]
    fn sockets_without_a_cgroup_have_that_of_their_process() {
        if !has_hooks("lifetimes", &[]) {
            return;
        }
        if let Err(why) = use_net_cls() {
            skip(&why);
            return;
        }
        // One after the other: while one attaches, the kernel may skip the programs of the other (KNOWN_ISSUES.md).
        let Some((inside, residents)) = closed("=") else {
            return;
        };
        assert_eq!(places(&inside), residents.inside());
        drop(residents);
        let (outside, residents) = closed("!=").expect("there were groups before");
        assert_eq!(pids(&outside), residents.outside());
    }

    /// What is told of connections that residents close, of their group or of others, and the residents. None where there
    /// are no groups.
    fn closed(operator: &str) -> Option<(Vec<Event>, Residents)> {
        let mut residents = Residents::new()?;
        let netns = residents.cable.client.inum().to_string();
        let filter = format!("cgroup {operator} {}", residents.group.path());
        let probe = Probe::start(&[
            "lifetimes",
            "--json",
            "--netns",
            &netns,
            "--filter",
            &filter,
        ]);
        residents.leave();
        Some((probe.stop().all().to_vec(), residents))
    }
}
