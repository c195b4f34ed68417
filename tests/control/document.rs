//! docs/control.md says what the code does.

use ringdrive::control::protocol::{EVENTS, ErrorKind, Method, event_name};
use ringdrive::drive::Event;
use serde_json::Value;

use crate::fake::Fake;

const DOCUMENT: &str = include_str!("../../docs/control.md");

/// The cells of the table under a heading, without the heading row.
fn table(heading: &str) -> Vec<Vec<&'static str>> {
    let section = DOCUMENT.split(&format!("\n## {heading}\n")).nth(1).expect(heading);
    section
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|row| row.trim_matches('|').split(" | ").map(|cell| cell.trim().trim_matches('`')).collect())
        .collect()
}

fn sorted<T: Ord>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut items: Vec<_> = items.into_iter().collect();
    items.sort();
    items
}

#[test]
fn the_examples_of_the_document_happen() {
    let fake = Fake::start();
    let image = fake.image("memtest86plus.iso", 6_193_152);
    let here = image.parent().unwrap().to_str().unwrap();
    let mut peer = fake.connect();
    let mut examples = 0;
    let blocks = DOCUMENT.split("```jsonrpc\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    for line in blocks.flat_map(str::lines) {
        let line = line.replace("/srv/images", here);
        if let Some(request) = line.strip_prefix("→ ") {
            peer.send_line(request);
        } else {
            let expected: Value = serde_json::from_str(line.strip_prefix("← ").expect(&line)).unwrap();
            assert_eq!(peer.receive().expect("an answer"), expected);
            examples += 1;
        }
    }
    assert!(examples > 15, "only {examples} examples were found");
    assert_eq!(fake.daemon.try_iter().collect::<Vec<_>>(), ["replug", "replugged", "shutdown"]);
}

#[test]
fn every_method_is_in_the_document_with_an_example_and_no_other() {
    let documented = sorted(table("Methods").iter().map(|row| row[0]));
    assert_eq!(documented, sorted(Method::ALL.map(Method::name)));
    for method in Method::ALL.map(Method::name) {
        assert!(DOCUMENT.contains(&format!("\"method\":\"{method}\"")), "{method} has no example");
    }
}

#[test]
fn every_error_is_in_the_document_with_its_code_and_no_other() {
    let documented: Vec<_> =
        table("Errors").iter().map(|row| (row[0].parse::<i32>().unwrap(), row[1].to_owned())).collect();
    assert_eq!(documented, ErrorKind::ALL.map(|kind| (kind.code(), kind.name().to_owned())));
}

#[test]
fn every_event_is_in_the_document_as_the_code_reads_and_writes_it_and_no_other() {
    let rows = table("Events");
    assert_eq!(rows.iter().map(|row| row[0]).collect::<Vec<_>>(), EVENTS);
    for row in rows {
        let value: Value = serde_json::from_str(row[2]).unwrap();
        let event: Event =
            serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{row:?}: {error}"));
        assert_eq!(event_name(&event), row[0]);
        assert_eq!(serde_json::to_value(&event).unwrap(), value);
    }
}
