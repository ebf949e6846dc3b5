//! What the suite wrote about a run.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// A run in numbers, and the tests one wants to know of.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Tests that passed.
    pub(crate) pass: u64,
    /// Tests that failed, or could not be made.
    pub(crate) fail: u64,
    /// Tests that were skipped, and those that the version has off by default.
    pub(crate) skip: u64,
    /// The failed ones.
    pub(crate) failures: Vec<Failure>,
    /// Names of the skipped ones.
    pub(crate) skipped: Vec<String>,
}

/// A failed test.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Its name, with what it belongs to before it.
    pub(crate) test: String,
    /// What was expected and what came.
    pub(crate) why: String,
}

#[derive(Debug, Deserialize)]
struct Suites {
    #[serde(rename = "testsuite", default)]
    suites: Vec<Suite>,
}

/// Its counts are of groups of tests as well; its cases are single tests.
#[derive(Debug, Deserialize)]
struct Suite {
    #[serde(rename = "@tests")]
    tests: u64,
    #[serde(rename = "@failures")]
    failures: u64,
    #[serde(rename = "@errors")]
    errors: u64,
    #[serde(rename = "@skipped", default)]
    skipped: u64,
    #[serde(rename = "@disabled", default)]
    disabled: u64,
    #[serde(rename = "testcase", default)]
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
struct Case {
    #[serde(rename = "@name")]
    name: String,
    #[serde(rename = "@status", default)]
    status: String,
    #[serde(rename = "system-out", default)]
    output: String,
}

impl Report {
    /// Reads the suite's `junit.xml`.
    pub(crate) fn read(xml: &str) -> Result<Self> {
        let suites: Suites = quick_xml::de::from_str(xml).context("cannot read the suite's junit.xml")?;
        let mut report = Self::default();
        for suite in suites.suites {
            report.fail += suite.failures + suite.errors;
            report.skip += suite.skipped + suite.disabled;
            let others = suite.failures + suite.errors + suite.skipped + suite.disabled;
            report.pass += suite.tests.checked_sub(others).context("the suite counted fewer tests than failures")?;
            for case in suite.cases {
                match case.status.as_str() {
                    "passed" => {}
                    "skipped" => report.skipped.push(case.name),
                    // One line each.
                    _ => report.failures.push(Failure { test: case.name, why: case.output.replace('\n', "; ") }),
                }
            }
        }
        ensure!(report.pass + report.fail > 0, "the suite tested nothing");
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_failures_are_read() {
        let xml = r#"<testsuites time="1.5" tests="9" failures="2" skipped="1">
  <testsuite name="OCI Conformance Test" tests="9" failures="2" errors="1" skipped="1" disabled="2" time="1.5">
    <properties><property name="Config" value="registry: a&#xA;"></property></properties>
    <testcase name="OCI/ping" classname="" time="0.1" status="passed"><system-err>GET &lt;x&gt;</system-err></testcase>
    <testcase name="OCI/tag list" classname="" status="skipped"></testcase>
    <testcase name="OCI/put" classname="" status="failure"><system-out>got &#34;a&#34;&#xA;and b</system-out></testcase>
    <testcase name="OCI/odd" classname="" status="error"></testcase>
  </testsuite>
</testsuites>"#;
        let failure = |test: &str, why: &str| Failure { test: test.to_owned(), why: why.to_owned() };
        let expected = Report {
            pass: 3,
            fail: 3,
            skip: 3,
            failures: vec![failure("OCI/put", "got \"a\"; and b"), failure("OCI/odd", "")],
            skipped: vec!["OCI/tag list".to_owned()],
        };
        assert_eq!(Report::read(xml).unwrap(), expected);
    }

    #[test]
    fn nothing_tested_is_no_success() {
        let empty = r#"<testsuites><testsuite name="x" tests="2" failures="0" errors="0" skipped="2"/></testsuites>"#;
        assert!(Report::read(empty).is_err());
        assert!(Report::read("<testsuites></testsuites>").is_err());
        assert!(Report::read("").is_err());
    }
}
