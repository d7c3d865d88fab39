//! Processes that run several programs, at places of their own or of the kernel's choosing.

use super::*;
use std::{
    io::Write,
    process::{Command, Stdio},
};

use crate::symbols::{images::Content, unwind::Taken};

fn mapping(start: u64, file: usize) -> Mapping {
    Mapping {
        start,
        end: start + 4096,
        offset: 0,
        content: Content::File(file, format!("program {file}")),
    }
}

fn has_several(processes: &Processes, pid: u32) -> bool {
    processes.programs[&pid].len() > 1
}

fn mapped(mappings: Vec<Mapping>) -> Mapped {
    Mapped {
        mappings,
        is_cut: false,
        began_ns: 0,
    }
}

fn identity(stack: &str) -> Identity {
    let fields: Vec<String> = (0..50).map(|field| format!("f{field}")).collect();
    let stat = format!("1 (a) b) {}", fields.join(" ")).replace("f25", stack);
    Identity::parse(&stat).unwrap()
}

#[test]
fn the_same_process_with_another_stack_runs_another_program() {
    assert_ne!(identity("140000"), identity("150000"));
    assert_eq!(identity("140000"), identity("140000"));
    assert_eq!(identity("140000").started, "f19");
}

#[test]
fn in_the_middle_of_exec_it_is_no_program() {
    let stat = |code: &str| {
        let fields: Vec<String> = (0..50).map(|field| format!("{field}")).collect();
        format!("1 (ex) {}", fields.join(" ")).replace(" 23 24 ", &format!(" {code} {code} "))
    };
    let is_settled = |code| Identity::parse(&stat(code)).unwrap().is_settled();
    assert!(is_settled("4198400"));
    assert!(!is_settled("0"));
}

#[test]
fn an_address_that_two_programs_had_in_different_files_is_in_neither() {
    let mut processes = Processes::default();
    processes.add(
        7,
        identity("1"),
        vec!["exa".to_owned()],
        mapped(vec![mapping(0x40_0000, 1), mapping(0x7000_0000_0000, 9)]),
    );
    // An earlier one may have had code there that nobody looked at.
    assert_eq!(processes.at(7, 0x40_0010), At::Several);
    let names: Vec<&str> = processes.each_at(7, 0x40_0010).into_keys().collect();
    assert_eq!(names, ["exa"]);
    assert!(processes.at_in_known(7, 0x40_0010).is_some());
    assert!(!has_several(&processes, 7));
    processes.add(
        7,
        identity("2"),
        vec!["exb".to_owned()],
        mapped(vec![mapping(0x40_0000, 2), mapping(0x7000_0000_0000, 9)]),
    );
    assert!(has_several(&processes, 7));
    let names: Vec<&str> = processes.each_at(7, 0x40_0010).into_keys().collect();
    assert_eq!(names, ["exa", "exb"]);
    assert!(processes.each_at(7, 0x7000_0000_0010).is_empty());
    assert_eq!(processes.at(7, 0x40_0010), At::Several);
    assert_eq!(processes.at_in_known(7, 0x40_0010), None);
    // A library of both at the same place.
    assert_eq!(
        processes.at(7, 0x7000_0000_0010),
        At::Mapping(&mapping(0x7000_0000_0000, 9))
    );
    assert_eq!(processes.at(7, 0x10), At::Unmapped);
    assert_eq!(processes.at(8, 0x10), At::Exited);
}

#[test]
fn processes_out_of_sight_have_not_ended() {
    let mut processes = Processes::default();
    processes.denied.insert(8);
    assert_eq!(processes.at(8, 0x10), At::Denied);
    assert_eq!(processes.at(9, 0x10), At::Exited);
    assert_eq!(processes.at(OUTSIDE, 0x10), At::Outside);
    assert!(!are_mappings_denied(std::process::id()));
}

#[test]
fn a_program_that_ran_before_the_window_had_its_code_to_itself() {
    let mut processes = Processes::default();
    let here = mapping(0x40_0000, 1);
    processes.before.insert(7, identity("1"));
    processes.add(7, identity("1"), Vec::new(), mapped(vec![here.clone()]));
    assert!(!processes.is_unsure(7));
    assert_eq!(processes.at(7, 0x40_0010), At::Mapping(&here));
    processes.add(7, identity("2"), Vec::new(), mapped(vec![here]));
    assert!(processes.is_unsure(7));
    // It has replaced the one before.
    processes.add(
        8,
        identity("2"),
        Vec::new(),
        mapped(vec![mapping(0x40_0000, 1)]),
    );
    processes.before.insert(8, identity("1"));
    assert_eq!(processes.at(8, 0x40_0010), At::Several);
}

#[test]
fn code_of_other_programs_is_not_where_the_kernel_puts_one() {
    let mut processes = Processes::default();
    let here = mapping(0x5555_5555_4000, 1);
    processes.add(7, identity("1"), Vec::new(), mapped(vec![here.clone()]));
    assert!(!processes.is_unsure(7));
    assert_eq!(processes.at(7, 0x5555_5555_4010), At::Mapping(&here));
}

#[test]
fn more_mappings_of_a_program_are_no_other_program() {
    let mut processes = Processes::default();
    processes.add(
        7,
        identity("1"),
        vec!["exa".to_owned()],
        mapped(vec![mapping(0x5555_5555_4000, 1)]),
    );
    processes.add(
        7,
        identity("1"),
        vec!["exa".to_owned()],
        mapped(vec![
            mapping(0x5555_5555_4000, 1),
            mapping(0x7000_0000_0000, 9),
        ]),
    );
    assert!(!has_several(&processes, 7));
    assert_eq!(
        processes.at(7, 0x7000_0000_0010),
        At::Mapping(&mapping(0x7000_0000_0000, 9))
    );
}

#[test]
fn what_is_in_none_of_the_mappings_that_are_read_may_be_in_others() {
    let mut processes = Processes::default();
    let mut many = mapped(vec![mapping(0x5555_5555_4000, 1)]);
    many.is_cut = true;
    processes.add(7, identity("1"), vec!["exa".to_owned()], many);
    assert_eq!(processes.at(7, 0x5555_5565_4000), At::TooMany);
    let here = mapping(0x5555_5555_4000, 1);
    assert_eq!(processes.at(7, 0x5555_5555_4000), At::Mapping(&here));
}

#[test]
fn a_young_process_that_becomes_another_program_is_noticed() {
    let mut images = Images::default();
    let mut processes = Processes::default();
    // As a script that starts a program of its own name: the shell goes on as soon as it may read.
    let mut child = Command::new("sh")
        .args(["-c", "read go; exec sleep 60"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let program = |path: &str| fs::read_link(path).unwrap();
    let exe = format!("/proc/{}/exe", child.id());
    let shell = program(&exe);
    // Whoever started it goes on in the middle of its first exec.
    while !processes.programs.contains_key(&child.id()) {
        processes.see(child.id(), &mut images);
    }
    processes.look_at_young(&mut images);
    assert!(!has_several(&processes, child.id()));
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    while program(&exe) == shell {
        std::thread::yield_now();
    }
    // In the middle of exec it is neither, and stays among those that are looked at.
    while !has_several(&processes, child.id()) && !processes.young.is_empty() {
        processes.look_at_young(&mut images);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(has_several(&processes, child.id()));
}

#[test]
fn programs_of_a_process_are_few() {
    let mut processes = Processes::default();
    for number in 0..100 {
        processes.add(
            7,
            identity(&number.to_string()),
            vec!["x".to_owned()],
            mapped(Vec::new()),
        );
    }
    assert_eq!(processes.programs[&7].len(), MOST_PROGRAMS);
}

const PLACE: u64 = 0x7000_0000_0000;

/// A program whose libraries took turns: at 10 it had the first, until 20; at 30 the second, until 40.
fn with_turns() -> Processes {
    let mut processes = Processes::default();
    for (file, began_ns) in [(1, 10), (1, 20), (2, 30), (2, 40)] {
        let names = vec!["host".to_owned()];
        let mappings = vec![mapping(PLACE, file), mapping(PLACE + 0x10_0000, 9)];
        let mapped = Mapped {
            began_ns,
            ..mapped(mappings)
        };
        processes.add(7, identity("1"), names, mapped);
    }
    processes
}

#[test]
fn where_libraries_took_turns_no_name_is_certain() {
    let processes = with_turns();
    assert_eq!(processes.at(7, PLACE), At::Remapped);
    assert!(processes.each_at(7, PLACE).is_empty());
    assert!(processes.has_several(7) && !processes.is_unsure(7));
    // One that stays.
    let stays = mapping(PLACE + 0x10_0000, 9);
    assert_eq!(processes.at(7, stays.start), At::Mapping(&stays));
}

#[test]
fn a_sample_is_of_the_library_that_was_there_before_and_after_it() {
    let mut processes = with_turns();
    // Looks have no time of their own here, but when the mappings were read.
    let second = processes.programs.get_mut(&7).unwrap().last_mut().unwrap();
    second.libraries = Libraries::of(30, 40);
    let version = |after_ns, before_ns| {
        let taken = Taken {
            after_ns,
            before_ns,
        };
        processes.version(7, taken)
    };
    assert_eq!([version(0, 15), version(12, 20)], [1, 1]);
    assert_eq!([version(30, 35), version(31, 40)], [2, 2]);
    assert_eq!([version(15, 25), version(20, 30), version(35, 45)], [0; 3]);
    let of = |version| processes.that_ran(7, PLACE, version).0.len();
    assert_eq!([of(1), of(2), of(0)], [1, 1, 2]);
    let first = processes.that_ran(7, PLACE, 1).0[0].at(PLACE).cloned();
    assert_eq!(first, Some(mapping(PLACE, 1)));
}

#[test]
fn a_library_that_comes_back_is_the_one_it_was() {
    let mut processes = with_turns();
    processes.add(
        7,
        identity("1"),
        Vec::new(),
        mapped(vec![mapping(PLACE, 1)]),
    );
    let numbers = processes.programs[&7].iter();
    let numbers: Vec<u32> = numbers.map(|program| program.number).collect();
    assert_eq!(numbers, [2, 1]);
}

#[test]
fn what_was_closed_keeps_its_names_while_nothing_else_is_there() {
    let mut processes = Processes::default();
    let both = vec![mapping(PLACE, 1), mapping(PLACE + 0x10_0000, 9)];
    processes.add(7, identity("1"), Vec::new(), mapped(both));
    let one = vec![mapping(PLACE + 0x10_0000, 9)];
    processes.add(7, identity("1"), Vec::new(), mapped(one));
    assert_eq!(processes.at(7, PLACE), At::Mapping(&mapping(PLACE, 1)));
    assert!(!processes.has_several(7));
    let other = vec![mapping(PLACE, 2), mapping(PLACE + 0x10_0000, 9)];
    processes.add(7, identity("1"), Vec::new(), mapped(other));
    assert_eq!(processes.at(7, PLACE), At::Remapped);
}

#[test]
fn code_made_at_run_time_takes_no_turns() {
    let mut processes = Processes::default();
    for start in [PLACE, PLACE - 4096] {
        let made = Mapping {
            start,
            end: PLACE + 8192,
            offset: 0,
            content: Content::Anonymous,
        };
        processes.add(7, identity("1"), Vec::new(), mapped(vec![made]));
    }
    assert!(!processes.has_several(7));
    assert!(matches!(processes.at(7, PLACE), At::Mapping(_)));
}

#[test]
fn a_process_whose_first_thread_has_ended_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let script = "echo '#include <pthread.h>
        #include <stdio.h>
        void *go(void *first) { pthread_join(*(pthread_t *)first, 0); puts(\"x\"); fflush(stdout); getchar(); _Exit(0); }
        static pthread_t first;
        int main() { pthread_t other; first = pthread_self(); pthread_create(&other, 0, go, &first); pthread_exit(0); }' |
        gcc -x c - -o program -lpthread";
    let mut shell = Command::new("sh");
    let built = shell.args(["-c", script]).current_dir(folder.path());
    if !built.status().unwrap().success() {
        println!("SKIP no C compiler");
        return;
    }
    let mut program = Command::new(folder.path().join("program"));
    let program = program.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = program.spawn().unwrap();
    let mut ready = [0; 2];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    while stat::state(&fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap())
        != Some('Z')
    {
        std::thread::yield_now();
    }
    let (mut processes, mut images) = (Processes::default(), Images::default());
    processes.see(child.id(), &mut images);
    let programs = &processes.programs[&child.id()];
    let mapping = &programs[0].mappings[0];
    assert!(matches!(mapping.content, Content::File(..)));
    assert_ne!(images.is_still(child.id(), mapping), Some(false));
    child.kill().unwrap();
    child.wait().unwrap();
}
