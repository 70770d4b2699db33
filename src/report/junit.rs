//! JUnit XML: what became of each check, in the form that CI systems show.
//!
//! ```text
//! testsuites name tests failures errors skipped
//!   testsuite name tests failures errors skipped
//!     testcase classname name
//!       failure type message | error message | skipped message
//! ```
//!
//! That is what the schemas in use agree on ([Jenkins'](https://github.com/jenkinsci/xunit-plugin) and
//! [GitLab's](https://docs.gitlab.com/ci/testing/unit_test_reports/)). Times and hosts are left out: the same run writes the same bytes.
//! Names come from files of strangers: what XML 1.0 forbids ([`Char`](https://www.w3.org/TR/xml/#charsets)), would be lost in an
//! attribute or cannot be seen is written as `\u{1b}`.

use crate::error::{Result, escape};
use crate::gates::GateRow;
use crate::outputs::staging::{self, Durability};
use crate::verify::Verification;
use quick_xml::Writer;
use quick_xml::events::{BytesDecl, Event};
use std::io::{self, Read, Write};
use std::path::Path;

/// How every file of this program begins, apart from the counts.
const START: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"qtool\"";

/// Checks of one run.
#[derive(Clone, Debug)]
pub struct Suite {
    /// The command, such as `qtool compare`.
    name: String,
    cases: Vec<Case>,
}

#[derive(Clone, Debug)]
struct Case {
    class: String,
    name: String,
    outcome: Outcome,
}

#[derive(Clone, Debug)]
enum Outcome {
    Passed,
    /// What kind of check, and what was expected and found.
    Failed(String, String),
    /// Why there is nothing to judge.
    Error(String),
    /// Why nothing was judged.
    Skipped(String),
}

impl Suite {
    /// The gates of `command`: a case for each row.
    pub fn of_gates(command: &str, rows: &[GateRow]) -> Self {
        let case = |row: &GateRow| {
            let message = || format!("{}: expected {}, found {}", row.measure.title(), row.limit_text(), row.found_text());
            Case {
                class: format!("qtool.{command}.{}", row.kind.name()),
                name: format!("{}: {}", row.name, row.measure.key()),
                outcome: if row.passed { Outcome::Passed } else { Outcome::Failed(row.measure.key().to_owned(), message()) },
            }
        };
        Suite { name: format!("qtool {command}"), cases: rows.iter().map(case).collect() }
    }

    /// What `verify` found: a case for each file of the output, and for what is wrong besides.
    pub fn of_verification(found: &Verification) -> Self {
        let case = |name: &str, outcome| Case { class: "qtool.verify".into(), name: name.to_owned(), outcome };
        let intact = found.intact.iter().map(|name| case(name, Outcome::Passed));
        let broken = found.about.iter().zip(&found.findings);
        let broken = broken.map(|(about, finding)| case(about, Outcome::Failed("not whole".into(), finding.clone())));
        Suite { name: "qtool verify".into(), cases: intact.chain(broken).collect() }
    }

    /// A run of `command` that ended before anything was judged.
    pub fn of_error(command: &str, message: &str) -> Self {
        Self::of_run(command, Outcome::Error(message.to_owned()))
    }

    /// A run of `command` that had no need to judge anything.
    pub fn of_skipped(command: &str, message: &str) -> Self {
        Self::of_run(command, Outcome::Skipped(message.to_owned()))
    }

    fn of_run(command: &str, outcome: Outcome) -> Self {
        let case = Case { class: format!("qtool.{command}"), name: "run".into(), outcome };
        Suite { name: format!("qtool {command}"), cases: vec![case] }
    }

    /// The file.
    pub fn to_xml(&self) -> Vec<u8> {
        let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
        self.write_to(&mut writer).expect("memory can be written to");
        let mut text = writer.into_inner();
        text.push(b'\n');
        text
    }

    fn write_to(&self, writer: &mut Writer<Vec<u8>>) -> io::Result<()> {
        let count = |is: fn(&Outcome) -> bool| self.cases.iter().filter(|case| is(&case.outcome)).count().to_string();
        let counts = [
            ("tests", self.cases.len().to_string()),
            ("failures", count(|outcome| matches!(outcome, Outcome::Failed(..)))),
            ("errors", count(|outcome| matches!(outcome, Outcome::Error(_)))),
            ("skipped", count(|outcome| matches!(outcome, Outcome::Skipped(_)))),
        ];
        let counts = || counts.iter().map(|(name, count)| (*name, count.as_str()));
        writer.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
        let suites = writer.create_element("testsuites").with_attribute(("name", "qtool")).with_attributes(counts());
        suites.write_inner_content(|writer| {
            let suite = writer.create_element("testsuite").with_attribute(("name", self.name.as_str())).with_attributes(counts());
            suite.write_inner_content(|writer| self.cases.iter().try_for_each(|case| case.write_to(writer)))?;
            Ok(())
        })?;
        Ok(())
    }

    /// Writes the file; an earlier one is replaced.
    ///
    /// # Errors
    ///
    /// As [`check_free`]; [`crate::Error::Io`] if it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        check_free(path)?;
        staging::write_file(path, &self.to_xml(), true, Durability::None)
    }
}

impl Case {
    fn write_to<W: Write>(&self, writer: &mut Writer<W>) -> io::Result<()> {
        let (class, name) = (attribute(&self.class), attribute(&self.name));
        let element = writer.create_element("testcase").with_attributes([("classname", class.as_str()), ("name", name.as_str())]);
        let (child, kind, message) = match &self.outcome {
            Outcome::Passed => return element.write_empty().map(drop),
            Outcome::Failed(kind, message) => ("failure", Some(kind), message),
            Outcome::Error(message) => ("error", None, message),
            Outcome::Skipped(message) => ("skipped", None, message),
        };
        let message = attribute(message);
        element.write_inner_content(|writer| {
            let child = writer.create_element(child).with_attributes(kind.map(|kind| ("type", kind.as_str())));
            child.with_attribute(("message", message.as_str())).write_empty().map(drop)
        })?;
        Ok(())
    }
}

/// Text that can stand in an attribute and is read back as it is, once it is escaped as XML wants it.
fn attribute(text: &str) -> String {
    // All others that XML 1.0 forbids are control characters.
    let is_forbidden = |c: char| matches!(c, '\u{fffe}' | '\u{ffff}');
    escape(text).chars().map(|c| if is_forbidden(c) { c.escape_unicode().to_string() } else { c.to_string() }).collect()
}

/// Whether a file can be written to `path`: to know before the work rather than after it. What CI reads is written anew at every
/// run, so an earlier one is in nobody's way.
///
/// # Errors
///
/// [`crate::Error::Usage`] if there is something that is neither such a file nor an empty one; [`crate::Error::Io`] if its directory does not exist.
pub fn check_free(path: &Path) -> Result<()> {
    staging::check_free(path, true)?;
    match path.metadata() {
        Ok(metadata) if !metadata.is_file() || metadata.len() > 0 && !is_ours(path) => {
            let hint = "--junit writes elsewhere with another name; if the file can go, remove it first";
            Err(staging::not_replaceable(path, "junit", "a JUnit file of qtool", hint))
        }
        _ => Ok(()),
    }
}

fn is_ours(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(START.len() as u64).read_to_end(&mut start));
    read.is_ok() && start == START.as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gates::{Kind, Measure};

    #[test]
    fn rows_are_cases_and_names_of_strangers_are_text() {
        let row = |name: &str, found, passed| GateRow {
            kind: Kind::Tensor,
            name: name.into(),
            measure: Measure::SqnrDb,
            found,
            limit: 30.0,
            passed,
        };
        let rows = [row("a", Some(31.0), true), row("<b a='1'>&\"\x00\x1b\n]]>\u{ffff}\u{202e}", Some(29.0), false), row("c", None, false)];
        let text = String::from_utf8(Suite::of_gates("compare", &rows).to_xml()).unwrap();
        let expected = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="qtool" tests="3" failures="2" errors="0" skipped="0">
  <testsuite name="qtool compare" tests="3" failures="2" errors="0" skipped="0">
    <testcase classname="qtool.compare.tensor" name="a: sqnr_db"/>
    <testcase classname="qtool.compare.tensor" name="&lt;b a=&apos;1&apos;&gt;&amp;&quot;\u{0}\u{1b}\u{a}]]&gt;\u{ffff}\u{202e}: sqnr_db">
      <failure type="sqnr_db" message="SQNR: expected at least 30 dB, found 29 dB"/>
    </testcase>
    <testcase classname="qtool.compare.tensor" name="c: sqnr_db">
      <failure type="sqnr_db" message="SQNR: expected at least 30 dB, found none"/>
    </testcase>
  </testsuite>
</testsuites>
"#;
        assert_eq!(text, expected);
        assert!(text.starts_with(START));
    }

    #[test]
    fn only_such_files_and_empty_ones_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("junit.xml");
        for content in ["", "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"qtool\" tests=\"0\"/>\n"] {
            std::fs::write(&path, content).unwrap();
            Suite::of_error("compare", "it <failed>").write(&path).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("errors=\"1\"") && text.contains("<error message=\"it &lt;failed&gt;\"/>"), "{text}");
        std::fs::write(&path, "<?xml version=\"1.0\"?><testsuites name=\"pytest\"/>").unwrap();
        assert_eq!(Suite::of_skipped("quantize", "unchanged").write(&path).unwrap_err().exit_code(), 2);
        assert_eq!(check_free(dir.path()).unwrap_err().exit_code(), 2);
        assert_eq!(check_free(&dir.path().join("nowhere/junit.xml")).unwrap_err().exit_code(), 4);
    }
}
