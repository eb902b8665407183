//! Reading and writing tests: every shape, every bad input, and no panic for any bytes.

use super::*;
use crate::error::ErrorKind;

fn csv(text: &str) -> Result<Frame> {
    read(text.as_bytes(), "data.csv", &ReadOptions::default())
}

fn with(text: &str, change: impl FnOnce(&mut ReadOptions)) -> Result<Frame> {
    let mut options = ReadOptions::default();
    change(&mut options);
    read(text.as_bytes(), "data.csv", &options)
}

fn message(result: Result<Frame>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data, "{error}");
    let text = error.to_string();
    assert!(!text.contains('\n') && !text.ends_with('.'), "{text}");
    text
}

fn ids(frame: &Frame) -> Vec<&str> {
    frame.series.iter().map(|series| series.id.as_str()).collect()
}

const LONG: &str = "unique_id,ds,y\n\
    b,2024-01-01,1\nb,2024-01-02,2\nb,2024-01-03,3\n\
    a,2024-01-01,4\na,2024-01-02,5\na,2024-01-03,6\n";

#[test]
fn long_tables_keep_the_order_of_appearance() {
    let frame = csv(LONG).unwrap();
    assert_eq!(ids(&frame), ["b", "a"]);
    assert_eq!(frame.series[0].values, [1.0, 2.0, 3.0]);
    assert_eq!(frame.frequency.to_string(), "D");
    assert_eq!(frame.report.rows, 6);
    assert_eq!(
        (frame.id_column.as_str(), frame.time_column.as_str(), frame.target_column.as_str()),
        ("unique_id", "ds", "y")
    );
    assert_eq!(ids(&frame.sorted_by_id()), ["a", "b"]);
}

#[test]
fn names_are_found_in_any_case_delimiter_and_line_end() {
    let text = "\u{feff}Item_ID;Timestamp;TARGET\r\n\"x;1\";2024-01-01 00:00;1\r\n\
        \"x;1\";2024-01-01 01:00;2\r\n\"x;1\";2024-01-01 02:00;3\r\n";
    let frame = csv(text).unwrap();
    assert_eq!(ids(&frame), ["x;1"]);
    assert_eq!(frame.frequency.to_string(), "h");
    assert_eq!(frame.id_column, "Item_ID");
    let future = frame.future_stamps(&frame.series[0], 1).unwrap();
    assert_eq!(frame.axis.text(future[0]), "2024-01-01 03:00");
    let mac = csv("ds,y\r1,1\r2,2\r3,3\r").unwrap();
    assert_eq!(mac.series[0].values, [1.0, 2.0, 3.0]);
    let tabs = csv("id\tdate\tvalue\na\t2024/01/01\t1\na\t2024/01/02\t2\na\t2024/01/03\t3\n");
    assert_eq!(tabs.unwrap().series[0].len(), 3);
}

#[test]
fn columns_can_be_named() {
    let text = "shop,when,sold,y\na,2024-01-01,1,7\na,2024-01-02,2,8\na,2024-01-03,3,9\n";
    let frame = with(text, |options| {
        options.columns = Columns {
            id: Some("shop".into()),
            time: Some("when".into()),
            target: Some("sold".into()),
        };
    });
    let frame = frame.unwrap();
    assert_eq!(frame.series[0].values, [1.0, 2.0, 3.0]);
    assert_eq!(frame.exog_columns, ["y"]);
    let absent = with(text, |options| options.columns.target = Some("revenue".into()));
    let text = message(absent);
    assert!(text.contains("expected the target column `revenue`"), "{text}");
    assert!(text.contains("`shop`, `when`, `sold`, `y`"), "{text}");
}

#[test]
fn exogenous_columns_are_numbers_or_left_out() {
    let text = "unique_id,ds,y,price,holiday,city\n\
        a,2024-01-01,1,2.5,True,Rome\na,2024-01-02,2,,False,Rome\na,2024-01-03,3,3.5,True,Rome\n";
    let frame = csv(text).unwrap();
    assert_eq!(frame.exog_columns, ["price", "holiday"]);
    assert_eq!(frame.series[0].exog, [[2.5, 3.0, 3.5], [1.0, 0.0, 1.0]]);
    assert_eq!(frame.exog_index("holiday").unwrap(), 1);
    let error = frame.exog_index("city").unwrap_err().to_string();
    assert!(error.contains("line 2: found `Rome`, expected a number"), "{error}");
    assert!(frame.exog_index("wind").unwrap_err().to_string().contains("[price, holiday]"));
}

#[test]
fn wide_tables_make_a_series_of_each_column() {
    let text = "date,HUFL,OT\n2016-07-01 00:00:00,5.8,30.5\n2016-07-01 01:00:00,5.7,27.8\n\
        2016-07-01 02:00:00,5.2,27.8\n";
    let frame = csv(text).unwrap();
    assert_eq!(ids(&frame), ["HUFL", "OT"]);
    assert_eq!(frame.series[1].values, [30.5, 27.8, 27.8]);
    assert_eq!((frame.id_column.as_str(), frame.time_column.as_str()), ("unique_id", "date"));
    // Naming the target makes the others exogenous.
    let frame = with(text, |options| options.columns.target = Some("OT".into())).unwrap();
    assert_eq!(ids(&frame), ["OT"]);
    assert_eq!(frame.exog_columns, ["HUFL"]);
}

#[test]
fn m4_tables_have_one_series_a_row() {
    let text =
        "\"V1\",\"V2\",\"V3\",\"V4\"\n\"H1\",\"605\",\"586\",\"\"\n\"H2\",\"1\",\"\",\"3\"\n";
    let frame = csv(text).unwrap();
    assert_eq!(ids(&frame), ["H1", "H2"]);
    assert_eq!(frame.series[0].values, [605.0, 586.0]);
    assert_eq!(frame.series[1].values, [1.0, 2.0, 3.0]);
    assert_eq!(frame.series[1].stamps, [1, 2, 3]);
    assert_eq!(frame.frequency.to_string(), "1");
    let bare = csv("H1,605,586\nH2,1,2,3\n").unwrap();
    assert_eq!(bare.series[1].values, [1.0, 2.0, 3.0]);
    let text = message(csv("V1,V2,V3\nH1,1,2\nH1,3,4\n"));
    assert!(text.contains("line 3: series `H1` appears twice (first at line 2)"), "{text}");
    let text = message(csv("V1,V2,V3\nH1,1,2\nH2,3,x\n"));
    assert!(text.contains("line 3: column 3: found `x`, expected a number"), "{text}");
    assert!(message(csv("V1,V2,V3\nH1,,\n")).contains("has no values"));
    assert!(message(csv("V1,V2,V3\nH1,1,2,3\n")).contains("found 4 fields, expected at most 3"));
}

#[test]
fn single_columns_with_and_without_a_name() {
    let frame = csv("sales\n1\n2\n\n4\n\n\n").unwrap();
    assert_eq!(ids(&frame), ["sales"]);
    assert_eq!(frame.series[0].values, [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(frame.report.missing_values, 1);
    let frame = csv("1\n2\n3").unwrap();
    assert_eq!(ids(&frame), ["y"]);
    assert_eq!(frame.series[0].stamps, [1, 2, 3]);
    let text = message(csv("sales\n1\n2\nx\n"));
    assert!(text.contains("line 4: column `sales`: found `x`, expected a number"), "{text}");
}

#[test]
fn a_column_of_dates_is_the_time_under_any_name() {
    let frame = csv("Month,#Passengers\n1949-01,112\n1949-02,118\n1949-03,132\n").unwrap();
    assert_eq!(ids(&frame), ["#Passengers"]);
    assert_eq!(frame.frequency.to_string(), "MS");
    let future = frame.future_stamps(&frame.series[0], 1).unwrap();
    let axis = frame.axis.for_frequency(&frame.frequency);
    assert_eq!(axis.text(future[0]), "1949-04");
    let two = message(csv("from,to,y\n2024-01-01,2024-01-02,1\n"));
    assert!(two.contains("expected one column of dates, or one named by --time-col"), "{two}");
}

#[test]
fn row_numbers_of_pandas_are_ignored() {
    let frame = csv(",ds,y\n0,2024-01-01,1\n1,2024-01-02,2\n2,2024-01-03,3\n").unwrap();
    assert_eq!(ids(&frame), ["y"]);
    assert!(frame.exog_columns.is_empty());
}

#[test]
fn json_in_every_orientation() {
    let orientations = [
        r#"[{"unique_id":"a","ds":"2024-01-01","y":1},{"unique_id":"a","ds":"2024-01-02","y":2},
            {"y":null,"ds":"2024-01-03","unique_id":"a"},
            {"unique_id":"a","ds":"2024-01-04","y":4}]"#,
        "{\"unique_id\":\"a\",\"ds\":\"2024-01-01\",\"y\":1}\n\
         {\"unique_id\":\"a\",\"ds\":\"2024-01-02\",\"y\":2}\n\n\
         {\"unique_id\":\"a\",\"ds\":\"2024-01-03\",\"y\":null}\n\
         {\"unique_id\":\"a\",\"ds\":\"2024-01-04\",\"y\":4}\n",
        r#"{"unique_id":["a","a","a","a"],
            "ds":["2024-01-01","2024-01-02","2024-01-03","2024-01-04"],"y":[1,2,null,4]}"#,
        r#"{"columns":{"unique_id":["a","a","a","a"],
            "ds":["2024-01-01","2024-01-02","2024-01-03","2024-01-04"],"y":[1,2,null,4]}}"#,
        r#"{"unique_id":{"0":"a","1":"a","2":"a","3":"a"},
            "ds":{"0":1704067200000,"1":1704153600000,"2":1704240000000,"3":1704326400000},
            "y":{"0":1.0,"1":2.0,"2":null,"3":4.0}}"#,
        r#"{"columns":["unique_id","ds","y"],"index":[0,1,2,3],"data":[["a","2024-01-01",1],
            ["a","2024-01-02",2],["a","2024-01-03",null],["a","2024-01-04",4]]}"#,
        r#"{"schema":{"fields":[]},"data":[{"unique_id":"a","ds":"2024-01-01","y":1},
            {"unique_id":"a","ds":"2024-01-02","y":2},{"unique_id":"a","ds":"2024-01-03"},
            {"unique_id":"a","ds":"2024-01-04","y":4}]}"#,
    ];
    for text in orientations {
        let frame = csv(text).unwrap_or_else(|error| panic!("{error} in {text}"));
        assert_eq!(ids(&frame), ["a"], "{text}");
        assert_eq!(frame.series[0].values, [1.0, 2.0, 3.0, 4.0], "{text}");
        assert_eq!(frame.frequency.to_string(), "D", "{text}");
        assert_eq!(frame.axis.text(frame.series[0].stamps[3]), "2024-01-04", "{text}");
    }
    let bare = csv("[1, 2.5, null, 4.5]").unwrap();
    assert_eq!(bare.series[0].values, [1.0, 2.5, 3.5, 4.5]);
}

#[test]
fn bad_json_names_its_record_or_line() {
    let cases = [
        ("[]", "has no records"),
        ("{}", "found columns none"),
        ("[[1]]", "record 1: found a list"),
        ("[{\"y\":1},{\"z\":1}]", "record 2: found column `z`"),
        ("[{\"ds\":1,\"y\":1},{\"ds\":2,\"y\":\"x\"}]", "record 2: column `y`: found `x`"),
        ("[{\"ds\":1,\"y\":1},{\"ds\":2,\"y\":[1]}]", "record 2: column `y`: found a list"),
        ("[{\"y\":1},{\"y\"", "is truncated"),
        ("[{\"y\":1},\n{\"y\" 2}]", "line 2 column"),
        ("{\"y\":[1,2],\"ds\":[1]}", "column `ds` has 1 values, expected 2"),
        ("{\"y\":[1,2],\"ds\":1}", "column `ds` is a single value"),
        ("{\"columns\":[\"y\"],\"data\":[[1,2]]}", "record 1: found 2 values, expected 1"),
        ("{\"columns\":[\"y\"],\"data\":[1]}", "record 1: found a single value"),
        ("{\"y\":{\"0\":1},\"ds\":{\"1\":1}}", "other row labels"),
        ("{\"y\":1e999}", "number out of range"),
        ("{\"y\":[1]}{\"y\":[1]}", "more than one table"),
    ];
    for (text, expected) in cases {
        let found = message(csv(text));
        assert!(found.starts_with("data.csv: ") && found.contains(expected), "{text}: {found}");
    }
    let deep = "[".repeat(100_000);
    assert!(csv(&deep).is_err());
}

#[test]
fn stamps_are_sorted_and_never_double() {
    let frame = csv("id,ds,y,x\na,3,30,3\na,1,10,1\na,2,20,2\n").unwrap();
    assert_eq!(frame.series[0].stamps, [1, 2, 3]);
    assert_eq!(frame.series[0].values, [10.0, 20.0, 30.0]);
    assert_eq!(frame.series[0].exog, [[1.0, 2.0, 3.0]]);
    let text = message(csv("id,ds,y\na,1,1\nb,1,1\na,2,2\na,1,3\n"));
    assert!(text.contains("line 5: series `a` has stamp 1 twice (first at line 2)"), "{text}");
}

#[test]
fn gaps_are_found_and_filled_by_the_policy() {
    let text = "ds,y\n2024-01-31,1\n2024-02-29,2\n2024-03-31,3\n2024-06-30,6\n";
    let values = |policy| {
        let frame = with(text, |options| options.gaps = policy).unwrap();
        assert_eq!(frame.report.missing_stamps, 2);
        assert_eq!(frame.axis.text(frame.series[0].stamps[4]), "2024-05-31");
        frame.series[0].values.clone()
    };
    assert_eq!(values(GapPolicy::Interpolate), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(values(GapPolicy::Ffill), [1.0, 2.0, 3.0, 3.0, 3.0, 6.0]);
    assert_eq!(values(GapPolicy::Zero), [1.0, 2.0, 3.0, 0.0, 0.0, 6.0]);
    assert_eq!(values(GapPolicy::Keep).iter().filter(|value| value.is_nan()).count(), 2);
    let error = message(with(text, |options| options.gaps = GapPolicy::Error));
    assert!(error.contains("line 5: stamp 2024-04-30 is missing before 2024-06-30"), "{error}");
    let error = message(with("ds,y\n1,1\n2,\n3,3\n", |o| o.gaps = GapPolicy::Error));
    assert!(error.contains("line 3: the value at 2 is missing"), "{error}");
}

#[test]
fn leading_blanks_shorten_the_series_and_all_blank_is_an_error() {
    let frame = csv("ds,y,x\n1,,1\n2,NA,2\n3,7,3\n4,,4\n").unwrap();
    assert_eq!(frame.series[0].stamps, [3, 4]);
    assert_eq!(frame.series[0].values, [7.0, 7.0]);
    assert_eq!(frame.series[0].exog, [[3.0, 4.0]]);
    assert!(message(csv("ds,y\n1,\n2,nan\n3,null\n")).contains("series `y`: has no values"));
}

#[test]
fn off_grid_stamps_and_huge_gaps_are_errors() {
    let text = "ds,y\n2024-01-01,1\n2024-01-02,2\n2024-01-03,3\n2024-01-03 12:00,3\n";
    let error = message(csv(text));
    assert!(error.contains("line 5: stamp 2024-01-03 12:00 is no whole number"), "{error}");
    assert!(error.contains("after 2024-01-03 00:00 (line 4)"), "{error}");
    let error = message(csv("ds,y\n1,1\n2,2\n3,3\n9000000000000000000,4\n"));
    assert!(error.contains("beyond the limit of added cells"), "{error}");
    let error = message(csv("ds,y\n-9000000000000000000,1\n0,2\n9000000000000000000,4\n"));
    assert!(error.contains("no frequency"), "{error}");
}

#[test]
fn the_frequency_can_be_given_and_must_fit() {
    let short = "ds,y\n2024-01-01,1\n2024-01-02,2\n";
    assert!(message(csv(short)).contains("give it with --freq"));
    let frame = with(short, |options| options.frequency = Some("D".parse().unwrap())).unwrap();
    assert_eq!(frame.series[0].len(), 2);
    let error = message(with(short, |o| o.frequency = Some("1".parse().unwrap())));
    assert!(error.contains("expected an integer stamp"), "{error}");
    let error = message(with("ds,y\n1,1\n", |o| o.frequency = Some("h".parse().unwrap())));
    assert!(error.contains("line 2: column `ds`: found `1`, expected a date"), "{error}");
    // Without stamps an asked frequency of dates has nothing to say.
    let frame = with("y\n1\n2\n", |o| o.frequency = Some("h".parse().unwrap())).unwrap();
    assert_eq!(frame.frequency.to_string(), "1");
}

#[test]
fn eight_digits_are_dates_unless_integers_are_asked_for() {
    let text = "ds,y\n20240228,1\n20240229,2\n20240301,3\n";
    let frame = csv(text).unwrap();
    assert_eq!(frame.frequency.to_string(), "D");
    let future = frame.future_stamps(&frame.series[0], 1).unwrap();
    assert_eq!(frame.axis.text(future[0]), "20240302");
    let frame = with(text, |o| {
        o.frequency = Some("1".parse().unwrap());
        o.gaps = GapPolicy::Keep;
    });
    assert_eq!(frame.unwrap().series[0].stamps[0], 20_240_228);
}

#[test]
fn every_bad_input_names_its_line() {
    let cases = [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("unique_id,ds,y\n", "has no rows"),
        (
            "unique_id,ds,y\na,2024-01-01,abc\n",
            "line 2: column `y`: found `abc`, expected a number",
        ),
        (
            "unique_id,ds,y\na,2024-01-01,1\na,2024-13-01,1\n",
            "line 3: column `ds`: found `2024-13-01`, expected a date like 2024-01-31",
        ),
        ("unique_id,ds,y\na,,1\n", "line 2: column `ds`: found ``, expected a date"),
        ("unique_id,ds,y\na,1,1\na,x,1\n", "line 3: column `ds`: found `x`, expected an integer"),
        ("unique_id,ds,y\na,2024-01-01,1\na,2024-01-0", "line 3: found 2 fields, expected 3"),
        ("unique_id,ds,y\na,2024-01-01,1,9\n", "line 2: found 4 fields, expected 3"),
        (
            "unique_id,ds,y\n\n\na,2024-01-01,inf\n",
            "line 4: column `y`: found `inf`, expected a finite number",
        ),
        (
            "unique_id,ds,y\r\n\r\na,2024-01-01,1e99\r\n",
            "line 3: column `y`: found `1e99`, expected a number within f32",
        ),
        (
            "unique_id,ds,y\r\na,2024-01-01,1\r\na,2024-01-02,\"x\"\r\n",
            "line 3: column `y`: found `x`, expected a number",
        ),
        ("unique_id,ds,y\n\"a\nb\",2024-01-01,1\na,2024-01-02,z\n", "line 4: column `y`"),
        ("unique_id,ds,y\n,2024-01-01,1\n", "line 2: column `unique_id`: found ``, expected an id"),
        ("unique_id,ds,price,qty\na,2024-01-01,1,2\n", "expected a target column"),
        ("ds,price,city\n2024-01-01,1,Rome\n", "`city` holds `Rome`"),
        ("ds,ds,y\n1,1,1\n", "column `ds` appears twice (columns 1 and 2)"),
        ("2024-01-01,5,6\n2024-01-02,6,7\n", "line 1: found the date `2024-01-01`"),
        ("store,date,sales\nA,2024-01-01,5\n", "--id-col and --target-col (`store` holds `A`)"),
        ("2024,5\n2025,6\n", "line 1: found only numbers (2 columns), expected a header"),
        ("ds\n2024-01-01\n", "expected at least one column of numbers"),
    ];
    for (text, expected) in cases {
        let found = message(csv(text));
        assert!(found.starts_with("data.csv: ") && found.contains(expected), "{text:?}: {found}");
    }
    let bytes = b"unique_id,ds,y\na,2024-01-01,1\n\xff\xfe,2024-01-02,1\n";
    let found = message(read(&bytes[..], "data.csv", &ReadOptions::default()));
    assert!(found.contains("line 3: column 1 is not UTF-8"), "{found}");
    let found = message(read(&b"\x1f\x8b\x08"[..], "data.csv", &ReadOptions::default()));
    assert!(found.contains("gzip"), "{found}");
    let found = message(read(&b"\xff\xfea\0"[..], "data.csv", &ReadOptions::default()));
    assert!(found.contains("UTF-16"), "{found}");
    let found = message(with(LONG, |options| options.max_bytes = 40));
    assert!(found.contains("longer than the limit of 40 bytes"), "{found}");
}

#[test]
fn absent_files_and_folders_are_named() {
    let error = read_path("no/such.csv", &ReadOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().starts_with("no/such.csv: "), "{error}");
    let error = read_path(".", &ReadOptions::default()).unwrap_err();
    assert!(error.to_string().contains("folder"), "{error}");
}

#[test]
fn future_features_are_looked_up_by_stamp() {
    let text = "unique_id,ds,price,temp\na,2024-01-02,2,20\na,2024-01-01,1,10\n\
        b,2024-01-01,3,30\nb,2024-01-02,,40\n";
    let future = read_future(text.as_bytes(), "future.csv", &ReadOptions::default()).unwrap();
    let day = |text| crate::calendar::parse_stamp(text).unwrap().0;
    let stamps = [day("2024-01-01"), day("2024-01-02")];
    let names = ["temp".to_owned(), "price".to_owned()];
    assert_eq!(future.values("a", &stamps, &names).unwrap(), [[10.0, 20.0], [1.0, 2.0]]);
    let cases = [
        (future.values("c", &stamps, &names), "series `c` is missing"),
        (future.values("b", &stamps, &names), "column `price` is empty at 2024-01-02"),
        (future.values("a", &[day("2024-01-03")], &names), "`temp` is missing at 2024-01-03"),
        (future.values("a", &stamps, &["x".to_owned()]), "`x` is missing, found [price, temp]"),
    ];
    for (found, expected) in cases {
        let error = found.unwrap_err().to_string();
        assert!(error.starts_with("future.csv: ") && error.contains(expected), "{error}");
    }
    let shared = read_future("ds,temp\n1,5\n2,6\n".as_bytes(), "f", &ReadOptions::default());
    assert_eq!(shared.unwrap().values("any", &[2], &names[..1]).unwrap(), [[6.0]]);
}

#[test]
fn static_features_have_one_row_a_series() {
    let read = |text: &str| read_static(text.as_bytes(), "static.csv", &ReadOptions::default());
    let table = read("unique_id,size,region\na,1.5,north\nb,,south\n").unwrap();
    assert_eq!(table.values("a", &["size".to_owned()]).unwrap(), [1.5]);
    assert!(table.values("b", &["size".to_owned()]).unwrap_err().to_string().contains("is empty"));
    let error = table.values("a", &["region".to_owned()]).unwrap_err().to_string();
    assert!(error.contains("`region` is not numeric: line 2: found `north`"), "{error}");
    assert!(table.values("z", &[]).unwrap_err().to_string().contains("series `z` is missing"));
    let error = read("unique_id,size\na,1\nb,2\na,3\n").unwrap_err().to_string();
    assert!(error.contains("line 4: series `a` appears twice (first at line 2)"), "{error}");
    assert!(read("size\n1\n").unwrap_err().to_string().contains("expected an id column"));
}

#[test]
fn writes_csv_and_json_that_read_back() {
    let frame = csv(LONG).unwrap();
    let columns = ForecastColumns::of(&frame, vec!["LSTM".into(), "LSTM-lo-90".into()]);
    let stamps = frame.future_stamps(&frame.series[0], 2).unwrap();
    let write = |format| {
        let mut writer = ForecastWriter::new(Vec::new(), format, columns.clone()).unwrap();
        writer.write("a \"b\", c", &stamps, &[&[0.1, 16_777_216.0], &[f32::NAN, -1e-9]]).unwrap();
        writer.write("d", &stamps, &[&[1.0, 2.0], &[3.0, 4.0]]).unwrap();
        assert!(writer.write("e", &stamps, &[&[1.0, 2.0]]).is_err());
        String::from_utf8(writer.finish().unwrap()).unwrap()
    };
    let text = write(Format::Csv);
    let expected = "unique_id,ds,LSTM,LSTM-lo-90\n\"a \"\"b\"\", c\",2024-01-04,0.1,\n\
        \"a \"\"b\"\", c\",2024-01-05,16777216.0,-1e-9\n\
        d,2024-01-04,1.0,3.0\nd,2024-01-05,2.0,4.0\n";
    assert_eq!(text, expected);
    let text = write(Format::Json);
    assert!(text.contains("{\"unique_id\":\"a \\\"b\\\", c\",\"ds\":\"2024-01-04\",\"LSTM\":0.1,"));
    let records: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(records.as_array().unwrap().len(), 4);
    assert!(records[0]["LSTM-lo-90"].is_null());
    assert_eq!(records[1]["LSTM-lo-90"].as_f64().unwrap() as f32, -1e-9);
}

#[test]
fn files_appear_whole_or_not_at_all() {
    let folder = std::env::temp_dir().join(format!("neural-forecast-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("out.csv");
    let frame = csv(LONG).unwrap();
    let columns = ForecastColumns::of(&frame, vec!["M".into()]);
    let listing = || std::fs::read_dir(&folder).unwrap().count();
    let mut file = ForecastFile::create(&path, None, columns.clone()).unwrap();
    file.write("a", &[0], &[&[1.0]]).unwrap();
    drop(file);
    assert_eq!(listing(), 0);
    let mut file = ForecastFile::create(&path, None, columns.clone()).unwrap();
    file.write("a", &[0], &[&[1.0]]).unwrap();
    assert!(!path.exists());
    file.commit().unwrap();
    assert_eq!(listing(), 1);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "unique_id,ds,M\na,1970-01-01,1.0\n");
    write_whole(&path, b"x").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"x");
    assert!(ForecastFile::create(folder.join("no/out.csv"), None, columns).is_err());
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn frames_made_in_code_are_checked() {
    let freq: Frequency = "2".parse().unwrap();
    let series = |stamps: &[i64]| Series {
        id: "a".into(),
        stamps: stamps.to_vec(),
        values: vec![0.0; 2],
        exog: Vec::new(),
    };
    let make = |stamps: &[i64]| {
        Frame::from_series(TimeAxis::Integer, freq, Vec::new(), vec![series(stamps)])
    };
    assert!(make(&[1, 3]).is_ok());
    assert!(make(&[1, 2]).unwrap_err().to_string().contains("stamp 2 does not follow 1"));
    assert!(make(&[1]).unwrap_err().to_string().contains("expected equal lengths"));
}

/// Mutates valid inputs of every format with a seeded generator; reading must end in a frame or
/// an error, never in a panic or a huge allocation.
#[test]
fn no_bytes_make_it_panic() {
    let seeds: [&[u8]; 9] = [
        LONG.as_bytes(),
        b"date,HUFL,OT\n2016-07-01 00:00:00,5.8,30.5\n2016-07-01 01:00:00,5.7,27.8\n",
        b"\"V1\",\"V2\",\"V3\"\n\"H1\",\"605\",\"586\"\n\"H2\",\"1\",\"\"\n",
        b"sales\n1\n2\n\n4\n",
        b"ds,y\n1,1\n2,2\n3,3\n",
        b"[{\"unique_id\":\"a\",\"ds\":\"2024-01-01\",\"y\":1},{\"unique_id\":\"a\"}]",
        b"{\"y\":[1,2,null],\"ds\":[1,2,3]}",
        b"{\"columns\":[\"ds\",\"y\"],\"data\":[[1,2],[2,3],[3,4]]}",
        b"ds;y\r\n2024-01-31;1\r\n2024-02-29;2\r\n2024-03-31;4\r\n",
    ];
    let tokens: [&[u8]; 12] = [
        b",",
        b"\n",
        b"\"",
        b"-",
        b"9999999999999999999",
        b"\xff",
        b"1e39",
        b"inf",
        b"{",
        b"[",
        b"9999-12-31",
        b":",
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below.max(1) as u64).unwrap()
    };
    let options = ReadOptions { max_inserted: 10_000, ..ReadOptions::default() };
    let mut read_well = 0;
    for round in 0..6000 {
        let mut bytes = seeds[round % seeds.len()].to_vec();
        for _ in 0..=random(4) {
            let at = random(bytes.len() + 1);
            match random(4) {
                0 => bytes.truncate(at),
                1 => drop(bytes.splice(at..at, tokens[random(tokens.len())].iter().copied())),
                2 if at < bytes.len() => bytes[at] = u8::try_from(random(256)).unwrap(),
                _ if at < bytes.len() => drop(bytes.remove(at)),
                _ => {}
            }
        }
        read_well += usize::from(read(bytes.as_slice(), "fuzz", &options).is_ok());
        let _ = read_future(bytes.as_slice(), "fuzz", &options);
        let _ = read_static(bytes.as_slice(), "fuzz", &options);
    }
    assert!(read_well > 100, "mutations leave too little to read: {read_well}");
}

/// Every folder of the workspace's fixtures that neuralforecast made: the stamps after its input
/// are those that neuralforecast wrote, with the frequency inferred.
#[test]
fn future_stamps_are_those_of_neuralforecast() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        eprintln!("skipped: no fixtures in {}", folder.display());
        return;
    };
    let mut compared = 0;
    for entry in entries {
        let path = entry.unwrap().path();
        if !path.file_name().unwrap().to_string_lossy().starts_with("nf_freq_") {
            continue;
        }
        let frame = read_path(path.join("input.csv"), &ReadOptions::default()).unwrap();
        let frame = frame.sorted_by_id();
        let expected = std::fs::read_to_string(path.join("expected.csv")).unwrap();
        let expected: Vec<String> = expected
            .lines()
            .skip(1)
            .map(|line| line.splitn(3, ',').take(2).collect::<Vec<_>>().join(","))
            .collect();
        let horizon = expected.len() / frame.series.len();
        let axis = frame.axis.for_frequency(&frame.frequency);
        let mut found = Vec::new();
        for series in &frame.series {
            for stamp in frame.future_stamps(series, horizon).unwrap() {
                found.push(format!("{},{}", series.id, axis.text(stamp)));
            }
        }
        assert_eq!(found, expected, "{}", path.display());
        compared += 1;
    }
    assert!(compared >= 16, "{compared}");
}
