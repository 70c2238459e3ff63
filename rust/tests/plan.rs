//! The plan contract, checked on the fixture that the Python tests write as well.
use mol_merge::methods::linear::Linear;
use mol_merge::methods::scale::Scale;
use mol_merge::methods::slerp::Slerp;
use mol_merge::methods::ties::MajoritySign;
use mol_merge::plan::{Expr, Fill, Made, Method, Plan};

const FIXTURE: &str = include_str!("../../tests/data/plan_v2.json");

#[test]
fn every_method_of_the_fixture_is_read_exactly() {
    let plan = Plan::parse(FIXTURE).unwrap();
    assert_eq!(plan.inputs[1].path.to_str(), Some("/models/däta +@1/model.safetensors"));
    assert_eq!(plan.inputs[0].mtime_ns, 1_700_000_000_123_456_789);
    assert!(matches!(plan.tasks[0].by, Method::Copy(_)));
    assert!(plan.tasks[1].by == Method::Scale(Scale { factor: -0.1 }));
    assert!(plan.tasks[2].by == Method::Linear(Linear { weights: vec![0.1, 2.5e-8], normalize: true }));
    assert!(plan.tasks[3].by == Method::Slerp(Slerp { t: 1.0 / 3.0 }));
    let Method::TaskArithmetic(task_arithmetic) = &plan.tasks[4].by else { panic!("task arithmetic") };
    assert_eq!(task_arithmetic.lambda, 0.7);
    assert_eq!(plan.tasks[4].of[1], Expr::Tensor(1, "b.\"e\"\n".into()));
    let Method::Ties(ties) = &plan.tasks[5].by else { panic!("ties") };
    assert_eq!((ties.densities.as_slice(), ties.majority_sign_method), (&[0.2, 1.0][..], MajoritySign::Count));
    let Method::DareLinear(dare) = &plan.tasks[6].by else { panic!("dare") };
    assert_eq!(dare.models, [0, u32::MAX]);
    assert_eq!((plan.seed, plan.allow_nonfinite), (7, true));
}

#[test]
fn every_expression_of_the_fixture_is_read_and_written_as_it_was() {
    let plan = Plan::parse(FIXTURE).unwrap();
    let Expr::Made(rows) = &plan.tasks[7].of[0] else { panic!("rows") };
    let Made::Rows { of, from: 0, to: 3 } = &**rows else { panic!("rows") };
    assert_eq!((of.kind(), of.parts()[0].kind(), of.parts()[0].parts()[0].kind()), ("transpose", "columns", "tensor"));
    let Expr::Made(cast) = &plan.tasks[8].of[1] else { panic!("cast") };
    let Made::Cast { of, .. } = &**cast else { panic!("cast") };
    let Expr::Made(scaled) = of.parts()[0] else { panic!("scaled") };
    assert!(matches!(&**scaled, Made::Scaled { block: [128, 1], .. }));
    assert_eq!(plan.tables["v0"].runs, [(0, 1, 3), (4, 0, 1)]);
    assert!(matches!(&plan.tables["v0"].fills[1], (5, Fill::Mean(rows)) if rows.len() == 2));
    let again = serde_json::to_string(&plan).unwrap();
    let (mut read, written): (serde_json::Value, serde_json::Value) =
        (serde_json::from_str(FIXTURE).unwrap(), serde_json::from_str(&again).unwrap());
    // The task with two results becomes two tasks.
    let tasks = read["tasks"].as_array_mut().unwrap();
    let mut second = tasks[5].clone();
    for (result, task) in [&mut tasks[5], &mut second].into_iter().enumerate() {
        task["to"] = serde_json::json!([task["to"][result]]);
        task["by"] = task["by"][result].clone();
    }
    tasks.push(second);
    assert_eq!(read, written);
}

#[test]
fn results_of_one_reading_are_tasks_of_their_own_in_the_order_of_the_tensors() {
    let plan = Plan::parse(FIXTURE).unwrap();
    let readings: Vec<usize> = plan.tasks.iter().map(|task| task.reading).collect();
    assert_eq!(readings, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 5]);
    assert_eq!(plan.tasks[5].of, plan.tasks[10].of);
    let alone = serde_json::to_string(&plan).unwrap();
    assert_eq!(plan.task_digests().unwrap(), Plan::parse(&alone).unwrap().task_digests().unwrap());
}

#[test]
fn a_task_writes_rows_up_to_those_of_the_next() {
    let plan = Plan::parse(FIXTURE).unwrap();
    let regions: Vec<_> = plan.written().iter().map(|region| (region.tensor, region.elements.clone())).collect();
    assert_eq!(regions[6..], [(6, 0..4), (7, 0..15), (7, 15..30), (8, 0..30), (9, 0..4)]);
    assert_eq!(plan.written()[8].bytes, 30..60);
}

#[test]
fn what_does_not_hold_together_is_refused() {
    let task = |tensor, row| format!("{{\"to\": [{{\"tensor\": {tensor}, \"row\": {row}}}]");
    for (from, to, word) in [
        ("\"seed\": 7".to_owned(), "\"seed\": 7, \"colour\": 1".to_owned(), "colour"),
        ("\"normalize\": false, \"lambda\"".into(), "\"normalise\": false, \"lambda\"".into(), "normalise"),
        ("{\"copy\": {}}".into(), "{\"copy\": {\"cast\": true}}".into(), "cast"),
        ("{\"copy\": {}}".into(), "{\"no_method\": {}}".into(), "no_method"),
        ("\"plan\": 2".into(), "\"plan\": 1".into(), "version 1"),
        ("4294967295".into(), "4294967296".into(), "u32"),
        ("\"dtype\": \"F16\"".into(), "\"dtype\": \"F17\"".into(), "F17"),
        ("{\"stack\"".into(), "{\"spilled\"".into(), "spilled"),
        ("\"from\": 0".into(), "\"begin\": 0".into(), "begin"),
        ("[0, \"g.1\"]".into(), "[0, \"g.1\", 2]".into(), "trailing"),
        ("[0, \"g.1\"]".into(), "[2, \"g.1\"]".into(), "input 2"),
        ("\"table\": \"v0\"".into(), "\"table\": \"v1\"".into(), "`v1`"),
        ("[128, 1]".into(), "[128]".into(), "array of length 2"),
        ("\"zero\"".into(), "\"one\"".into(), "one"),
        ("[4, 0, 1]".into(), "[4, 0, 2]".into(), "row 5"),
        ("[4, 0, 1]".into(), "[3, 0, 1]".into(), "row 3"),
        ("\"rows\": 6".into(), "\"rows\": 7".into(), "make 6 rows, wanted 7"),
        ("\"format\": \"safetensors\"".into(), "\"format\": \"gguf\"".into(), "gguf"),
        ("\"tensor\": 0, \"row\": 0}]".into(), "\"tensor\": 0, \"row\": 0}], \"as\": {}".into(), "as"),
        ("[{\"tensor\": 0, \"row\": 0}]".into(), "[]".into(), "task 0 writes nothing"),
        ("{\"tensor\": 9, \"row\": 0}".into(), "{\"tensor\": 10, \"row\": 0}".into(), "lists 10"),
        (", {\"tensor\": 9, \"row\": 0}".into(), String::new(), "task 5 writes 1 tensors by 2 methods"),
        (
            "[{\"tensor\": 0, \"row\": 0}]".into(),
            "[{\"tensor\": 0, \"row\": 0}, {\"tensor\": 9, \"row\": 0}]".into(),
            "task 0 writes 2 tensors by 1 methods",
        ),
        ("{\"tensor\": 9, \"row\": 0}".into(), "{\"tensor\": 0, \"row\": 0}".into(), "`a.copied` from row 0"),
        (task(0, 0), task(1, 0), "`b.scaled`"),
        (task(7, 3), task(7, 0), "row 0 of 6"),
        (task(7, 3), task(7, 6), "row 6 of 6"),
        (task(7, 3), task(10, 0), "lists 10"),
        (task(7, 0), task(7, 1), "row 1 of 6"),
        (task(8, 0), task(7, 5), "next is tensor `h.embedding`"),
        (
            "[4], \"output\": 1}],".into(),
            "[4], \"output\": 1}, {\"name\": \"j\", \"dtype\": \"F32\", \"shape\": [4], \"output\": 1}],".into(),
            "no task writes tensor `j`",
        ),
    ] {
        assert!(FIXTURE.contains(&from), "{from}");
        let error = Plan::parse(&FIXTURE.replacen(&from, &to, 1)).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[test]
fn a_digest_names_the_work_not_its_place_or_time() {
    let digest = |json: &str| Plan::parse(json).unwrap().digest().unwrap();
    let first = digest(FIXTURE);
    for (from, to) in [
        ("/models/base", "/elsewhere"),
        ("1700000000123456789", "5"),
        ("\"allow_nonfinite\": true", "\"allow_nonfinite\": false"),
    ] {
        assert_eq!(first, digest(&FIXTURE.replace(from, to)), "{from}");
    }
    for (from, to) in [
        ("4096", "4097"),
        ("00ff", "00fe"),
        ("0.7", "0.8"),
        ("\"seed\": 7", "\"seed\": 8"),
        ("b.g", "b.h"),
        ("b.q_scale", "b.r_scale"),
        ("[128, 1]", "[128, 2]"),
        ("b.fisher", "b.hessian"),
        ("model-00001-of-00002", "model-00001-of-00003"),
        ("[[0, \"h\"], 2]", "[[0, \"h\"], 3]"),
    ] {
        assert_ne!(first, digest(&FIXTURE.replacen(from, to, 1)), "{from}");
    }
}

#[test]
fn a_tasks_digest_changes_with_that_task_alone() {
    let digests = |json: &str| Plan::parse(json).unwrap().task_digests().unwrap().to_vec();
    let first = digests(FIXTURE);
    // The third input comes first: input numbers are not part of the work.
    let shifted = FIXTURE.replacen(
        "\"inputs\": [",
        "\"inputs\": [{\"path\": \"/c\", \"size\": 1, \"mtime_ns\": 1, \"header\": \"c\"}, ",
        1,
    );
    let shifted = shifted.replace("[1, \"", "[2, \"").replace("[0, \"", "[1, \"");
    assert_eq!(first, digests(&shifted));
    for (from, to, changed) in [
        ("-0.1", "-0.2", vec![1]),
        ("[0, \"e\"]", "[1, \"e\"]", vec![4]),
        ("\"row\": 3", "\"row\": 2", vec![7, 8]),
        ("[1, \"b.h\"]", "[0, \"b.h\"]", vec![9]),
        ("\"shape\": [4], \"output\": 1", "\"shape\": [5], \"output\": 1", vec![4]),
    ] {
        let others = digests(&FIXTURE.replacen(from, to, 1));
        let found: Vec<usize> = (0..first.len()).filter(|i| first[*i] != others[*i]).collect();
        assert_eq!(found, changed, "{from}");
    }
}
