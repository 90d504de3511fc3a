//! Rules of ids and attributes on the command line: what is refused and in which words.

use gatherfs_support::daemon::{Scratch, gatherfsd};

use super::{command, refused};

#[test]
fn a_rule_with_a_mistake_is_refused_with_its_option_the_place_and_what_to_write() {
    let scratch = Scratch::new();
    let cases: [(&[&str], [&str; 3]); 9] = [
        (&["--translate-uid", "map:1:x:3"], ["--translate-uid", "position 7", "expected a number"]),
        (&["--translate-gid", "mop:1:2:3"], ["--translate-gid", "position 1", "map:GUEST:HOST:COUNT"]),
        (&["--translate-gid", "map:1:2"], ["--translate-gid", "3 numbers, not 2", "map:GUEST:HOST:COUNT"]),
        (&["--translate-uid", "guest:0:1:10", "--translate-uid", "map:5:1:1"], ["--translate-uid", "guest's id 5", "use disjoint ranges"]),
        (&["--translate-uid", "map:0:1:1", "--posix-acl"], ["--translate-uid", "--posix-acl", "leave one of them out"]),
        (&["--xattrmap", ":ok:al:::"], ["--xattrmap", "position 5", "client, server or all"]),
        (&["--xattrmap", ":ok:all::"], ["--xattrmap", "position 1", ":map:KEY:PREPEND:"]),
        (&["--xattrmap", ":map::user.:/ok/all///"], ["--xattrmap", "position 13", "put the map rule last"]),
        (&["--security-label=sometimes"], ["--security-label", "sometimes", "never, auto or always"]),
    ];
    for (options, words) in cases {
        let (status, said) = refused(&mut command(&scratch, options));
        assert_eq!(status.code(), Some(2), "{options:?}");
        for word in words {
            assert!(said.contains(word), "{options:?}: {word} is missing in {said}");
        }
        assert!(!scratch.join("s").exists(), "{options:?} made a socket");
    }
}

#[test]
fn labels_that_no_file_could_have_are_refused_at_the_start() {
    let scratch = Scratch::new();
    let mut command = gatherfsd();
    command.args(["--shared-dir", "/proc", "--sandbox", "none", "--security-label", "--socket-path"]).arg(scratch.join("s"));

    let (status, said) = refused(&mut command);

    assert_eq!(status.code(), Some(1));
    assert!(said.contains("--security-label=always: the file system of /proc") && said.contains("or use auto"), "{said}");
}
