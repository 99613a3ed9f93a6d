//! A wall that is missing is seen by the probe, named in the report, and the floor refuses with a remedy.

use jail::{CgroupVersion, Enforced, Floor, JailError, Layers, Missing, zygote::Launcher};

use super::{evil_cell, start};

#[test]
fn every_wall_stands_here() {
    let launcher = Launcher::start(&evil_cell(), &[], &[], Floor::Strict).unwrap();
    let report = launcher.report();
    assert_eq!(report.missing(Floor::Strict), []);
    assert_ne!(report.cgroup, CgroupVersion::None);
    assert_eq!((report.memory, report.cpu, report.processes), (Enforced::Cgroup, Enforced::Cgroup, Enforced::Cgroup));
    assert_eq!(report.cpu_weight, Enforced::Cgroup);
    assert_eq!(report.namespaces, ["user", "pid", "net", "mnt", "ipc", "uts", "cgroup"]);
    assert!(report.landlock_abi.is_some_and(|abi| abi >= 1));
    println!("{report}");
}

/// With `layers`, the strict floor must name exactly `expected`.
fn check(layers: Layers, expected: &[&str]) {
    let launcher = start(layers);
    let missing = launcher.report().missing(Floor::Strict);
    let names: Vec<_> = missing.iter().map(|missing| missing.what).collect();
    assert_eq!(names, expected, "\n{}", launcher.report());
    let Err(JailError::BelowFloor(refused)) = launcher.report().check(Floor::Strict) else { panic!("not refused") };
    assert_eq!(refused, missing);
    let words = JailError::BelowFloor(refused.clone()).to_string();
    for Missing { what, remedy } in refused {
        assert!(words.contains(what) && words.contains(remedy) && remedy.len() > 10, "{words}");
    }
}

#[test]
fn without_namespaces() {
    let names = [
        "user namespace",
        "process namespace",
        "network namespace",
        "mount namespace",
        "ipc namespace",
        "host name namespace",
        "control group namespace",
    ];
    // The zygote's own empty root is a mount namespace too, so the cell still does not share the service's.
    let names: Vec<_> = names.into_iter().filter(|name| *name != "mount namespace").collect();
    check(Layers { namespaces: false, ..Layers::ALL }, &names);
}

#[test]
fn without_an_own_user_id() {
    // Under the service's user id, here root, the kernel cannot tell a readable process from an unreadable one.
    check(Layers { own_uid: false, ..Layers::ALL }, &["own user id per cell", "protection of memory from others"]);
}

#[test]
fn without_an_empty_root() {
    check(Layers { empty_root: false, ..Layers::ALL }, &["empty root"]);
}

#[test]
fn with_capabilities() {
    check(Layers { no_capabilities: false, ..Layers::ALL }, &["dropping of capabilities"]);
}

#[test]
fn without_landlock() {
    check(Layers { landlock: false, ..Layers::ALL }, &["landlock"]);
}

#[test]
fn without_the_filter() {
    check(Layers { seccomp: false, ..Layers::ALL }, &["system call filter"]);
}

#[test]
fn without_no_new_privileges() {
    // Landlock and the filter each set it as well.
    check(
        Layers { no_new_privileges: false, landlock: false, seccomp: false, ..Layers::ALL },
        &["system call filter", "no_new_privs", "landlock"],
    );
}

#[test]
fn without_control_groups() {
    check(Layers { cgroup: false, ..Layers::ALL }, &["memory limit by control group", "processor limit by control group"]);
    let report = start(Layers { cgroup: false, ..Layers::ALL }).report().clone();
    assert_eq!((report.memory, report.processes), (Enforced::Rlimit, Enforced::Rlimit));
    report.check(Floor::Development).unwrap();
}

#[test]
fn without_control_groups_and_resource_limits() {
    let layers = Layers { cgroup: false, rlimits: false, ..Layers::ALL };
    check(layers, &["memory limit by control group", "processor limit by control group", "limit of processes"]);
    let Err(JailError::BelowFloor(missing)) = start(layers).report().check(Floor::Development) else { panic!("not refused") };
    assert_eq!(missing.iter().map(|missing| missing.what).collect::<Vec<_>>(), ["memory limit"]);
}

#[test]
fn with_open_descriptors() {
    check(Layers { close_descriptors: false, ..Layers::ALL }, &["closing of descriptors"]);
}

#[test]
fn leaving_nothing_out_is_no_way_round_the_floor() {
    assert!(Launcher::start_weakened(&evil_cell(), &[], &[], Layers::ALL).is_err());
}

#[test]
fn a_zygote_with_threads_forks_nothing() {
    let launcher = Launcher::start_weakened(&evil_cell(), &["threads"], &[], Layers { cgroup: false, ..Layers::ALL }).unwrap();
    assert_eq!(launcher.report().engine_threads, 2);
    assert!(matches!(launcher.spawn(&super::LIMITS), Err(JailError::Confine { .. })));
    for floor in [Floor::Strict, Floor::Development] {
        let error = Launcher::start(&evil_cell(), &["threads"], &[], floor).unwrap_err().to_string();
        assert!(error.contains("single-threaded zygote"), "{error}");
    }
}

/// What a developer without root gets: everything but the walls that only root can build, and those are named.
#[test]
fn somebody_else_than_root() {
    use std::os::unix::{fs::PermissionsExt, process::CommandExt};
    const NOBODY: u32 = 65_534;
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("evil-cell");
    std::fs::copy(evil_cell(), &program).unwrap();
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(&program).args(arguments).uid(NOBODY).gid(NOBODY).current_dir("/").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let text = run(&["report"]);
    for line in [
        "control groups        none",
        "memory limit          by resource limit",
        "processor limit       NOT ENFORCED",
        "namespaces            user pid net mnt ipc uts cgroup",
        "own user id           NO",
        "empty root            yes",
        "no capabilities       yes",
        "system call filter    yes",
        "descriptors closed    yes",
        "memory unreadable     yes",
        "development: Ok(())",
    ] {
        assert!(text.contains(line), "no `{line}` in\n{text}");
    }
    assert!(text.contains("strict: Err"), "{text}");
    let text = run(&["report", "readable"]);
    assert!(text.contains("memory unreadable     NO") && text.contains("protection of memory from others"), "{text}");
}
