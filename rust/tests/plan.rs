//! The plan contract, from the fixture that the Python tests write the same plan to.
use mol_merge::methods::linear::Linear;
use mol_merge::methods::scale::Scale;
use mol_merge::methods::slerp::Slerp;
use mol_merge::methods::ties::MajoritySign;
use mol_merge::plan::{Method, Plan};

const FIXTURE: &str = include_str!("../../tests/data/plan_v1.json");

#[test]
fn every_method_of_the_fixture_is_read_exactly() {
    let plan = Plan::parse(FIXTURE).unwrap();
    assert_eq!(plan.inputs[1].path.to_str(), Some("/models/däta +@1/model.safetensors"));
    assert_eq!(plan.inputs[0].mtime_ns, 1_700_000_000_123_456_789);
    assert!(matches!(plan.tasks[0].method, Method::Copy(_)));
    assert!(plan.tasks[1].method == Method::Scale(Scale { factor: -0.1 }));
    assert!(plan.tasks[2].method == Method::Linear(Linear { weights: vec![0.1, 2.5e-8], normalize: true }));
    assert!(plan.tasks[3].method == Method::Slerp(Slerp { t: 1.0 / 3.0 }));
    let Method::TaskArithmetic(task_arithmetic) = &plan.tasks[4].method else { panic!("task arithmetic") };
    assert_eq!(task_arithmetic.lambda, 0.7);
    assert_eq!(plan.tasks[4].sources[1].tensor, "b.\"e\"\n");
    let Method::Ties(ties) = &plan.tasks[5].method else { panic!("ties") };
    assert_eq!((ties.densities.as_slice(), ties.majority_sign_method), (&[0.2, 1.0][..], MajoritySign::Count));
    assert_eq!((plan.seed, plan.allow_nonfinite), (7, true));
}

#[test]
fn unknown_fields_and_other_versions_are_refused() {
    for (from, to, word) in [
        ("\"seed\": 7", "\"seed\": 7, \"colour\": 1", "colour"),
        ("\"normalize\": false, \"lambda\"", "\"normalise\": false, \"lambda\"", "normalise"),
        ("{\"copy\": {}}", "{\"copy\": {\"cast\": true}}", "cast"),
        ("{\"copy\": {}}", "{\"dare_ties\": {}}", "dare_ties"),
        ("\"plan\": 1", "\"plan\": 2", "version 2"),
        ("\"dtype\": \"F16\"", "\"dtype\": \"F17\"", "F17"),
    ] {
        assert!(FIXTURE.contains(from), "{from}");
        let error = Plan::parse(&FIXTURE.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[test]
fn a_digest_names_the_work_not_its_place_or_time() {
    let digest = |json: &str| Plan::parse(json).unwrap().digest().unwrap();
    let first = digest(FIXTURE);
    assert_eq!(first, digest(&FIXTURE.replace("/models/base", "/elsewhere").replace("1700000000123456789", "5")));
    for (from, to) in
        [("4096", "4097"), ("00ff", "00fe"), ("0.7", "0.8"), ("\"seed\": 7", "\"seed\": 8"), ("b.g", "b.h")]
    {
        assert_ne!(first, digest(&FIXTURE.replacen(from, to, 1)), "{from}");
    }
}
