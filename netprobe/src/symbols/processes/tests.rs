//! Processes that run several programs, at places of their own or of the kernel's choosing.

use super::*;
use std::{
    io::Write,
    process::{Command, Stdio},
};

use crate::symbols::images::Content;

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
    processes.see(child.id(), &mut images);
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
