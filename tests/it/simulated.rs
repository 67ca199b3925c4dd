//! A simulated day's answers, against the simulator's own tally.

use crate::harness::Server;
use crate::shop;

#[test]
fn every_report_equals_the_simulators_tally() {
    let day = shop::day(7, 8_000);
    let server = Server::fresh();
    server.accept(&day.events);
    server.settle();
    shop::assert_reports_equal_tally(&server, &day);
    server.assert_audit();
    let answer = server.read("/v1/reports/top-viewed");
    assert_eq!((&answer["exact"], &answer["lag_seconds"]), (&true.into(), &0.into()));
}
