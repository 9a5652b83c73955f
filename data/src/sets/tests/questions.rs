//! Sets of questions and of triplets.

use serde_json::{Value, json};

use super::{OpenSet, fields, outline, read, refused, same_from_windows, write};
use crate::sets::Count;

/// Questions of all samples: question, answer and kind.
fn asked(set: &OpenSet) -> Vec<[&str; 3]> {
    let questions = set.samples.iter().flat_map(|sample| sample.texts.questions().unwrap());
    questions.map(|q| [&*q.question, &*q.answer, &*q.kind]).collect()
}

#[test]
fn questions_of_gqa_about_one_picture_are_one_sample() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let questions = r#"{"q2": {"question": "Is it red?", "answer": "no", "imageId": "n1",
            "types": {"structural": "verify"}, "semantic": []},
        "q1": {"question": "What is it?", "answer": "flounder", "imageId": "n2"},
        "q3": {"question": "Who is it?", "answer": "man", "imageId": "n1"}}"#;
    write(at, &[("q.json", questions), ("a.json", r#"["no", "man", "yes"]"#)]);
    let format = json!({"gqa": {"questions": "q.json", "answers": "a.json",
        "images": "i/{image_id}.jpg"}});
    let set = read(at, &format);
    assert_eq!(outline(at, &set), ["n1 i/n1.jpg", "n2 i/n2.jpg"]);
    let expected =
        [["Is it red?", "no", ""], ["Who is it?", "man", ""], ["What is it?", "flounder", ""]];
    assert_eq!(asked(&set), expected);
    assert_eq!((set.count(Count::Questions), set.labels.len()), (3, 3));
    same_from_windows(at, &format, "q.json");
    write(at, &[("q.json", &questions.replace("q3", "q2"))]);
    assert!(refused(at, &format).contains("two questions have the id `q2`"));
    write(at, &[("q.json", "<!DOCTYPE html><html></html>")]);
    assert!(refused(at, &format).contains("q.json"));
}

#[test]
fn tally_qa_has_simple_and_complex_questions_and_sixteen_answers() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let of = |id: u32, simple: Value| {
        json!({"answer": 3, "data_source": "vg", "image": "VG_100K/9.jpg", "image_id": 9,
            "issimple": simple, "question": format!("How many {id}?"), "question_id": id})
    };
    let all = json!([of(1, json!(true)), of(2, json!(0)), of(3, json!(1))]);
    write(at, &[("test.json", &all.to_string())]);
    let format = json!({"tally_qa": {"questions": "test.json", "images": "{image}"}});
    let set = read(at, &format);
    assert_eq!(outline(at, &set), ["VG_100K/9.jpg VG_100K/9.jpg"]);
    let kinds: Vec<&str> = asked(&set).iter().map(|question| question[2]).collect();
    assert_eq!(kinds, ["simple", "complex", "simple"]);
    assert_eq!(asked(&set)[0][1], "3");
    assert!(set.labels.len() == 16 && set.labels.contains_key("15"));
    same_from_windows(at, &format, "test.json");
    write(at, &[("test.json", &json!([of(1, json!("x"))]).to_string())]);
    assert!(refused(at, &format).contains("`issimple` of the question 1 is \"x\""));
    let up = json!([of(1, json!(1))]).to_string().replace("VG_100K", "..");
    write(at, &[("test.json", &up)]);
    assert!(refused(at, &format).contains("not a path below the folder of the set"));
}

#[test]
fn pope_joins_its_three_files_and_their_names_are_the_kinds() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let line = |id: u32, image: &str, label: &str| {
        let text = "Is there a cup in the image?";
        json!({"question_id": id, "image": image, "text": text, "label": label}).to_string() + "\n"
    };
    let random = line(1, "a.jpg", "yes") + &line(2, "b.jpg", "no");
    write(at, &[("r.json", &random), ("p.json", &line(1, "a.jpg", "no")), ("a.json", "\n")]);
    let format = json!({"pope": {"random": "r.json", "popular": "p.json",
        "adversarial": "a.json", "images": "{image}"}});
    let set = read(at, &format);
    assert_eq!(outline(at, &set), ["a.jpg a.jpg", "b.jpg b.jpg"]);
    let answers: Vec<_> = asked(&set).iter().map(|q| (q[1], q[2])).collect();
    assert_eq!(answers, [("yes", "random"), ("no", "popular"), ("no", "random")]);
    same_from_windows(at, &format, "r.json");
    write(at, &[("p.json", &line(1, "a.jpg", "maybe"))]);
    assert!(refused(at, &format).contains("line 1: the label `maybe` is neither yes nor no"));
    write(at, &[("p.json", &(line(1, "a.jpg", "no") + &line(1, "b.jpg", "no")))]);
    assert!(refused(at, &format).contains("line 2: two questions have the id `popular 1`"));
    write(at, &[("p.json", "{")]);
    assert!(refused(at, &format).contains("line 1 cannot be parsed"));
}

#[test]
fn pope_v2_and_clevr_are_lists_of_questions() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let one = json!({"image_id": 1, "image_name": "a.png", "target_object": "cup",
        "query": "Is there a cup?", "label": "Yes"});
    write(at, &[("v2.json", &json!([one]).to_string())]);
    let format = json!({"pope_v2": {"questions": "v2.json", "images": "i/{image_name}"}});
    let set = read(at, &format);
    assert_eq!((outline(at, &set), asked(&set)[0][1]), (vec!["a.png i/a.png".to_owned()], "yes"));
    write(at, &[("v2.json", &json!([one, one]).to_string())]);
    assert!(refused(at, &format).contains("two questions have the id"));

    let question = |index: u32, answer: &str| {
        json!({"question_index": index, "image_filename": "c.png", "split": "val",
            "question": "How many?", "answer": answer, "program": [{"function": "scene"}]})
    };
    let all = json!({"info": {}, "questions": [question(0, "3"), question(1, "cube")]});
    write(at, &[("clevr.json", &all.to_string())]);
    let format = json!({"clevr": {"questions": "clevr.json", "images": "{image_filename}"}});
    let set = read(at, &format);
    assert_eq!((set.samples.len(), set.count(Count::Questions)), (1, 2));
    assert_eq!(set.labels.keys().collect::<Vec<_>>(), ["3", "cube"]);
    same_from_windows(at, &format, "clevr.json");
}

#[test]
fn triplets_keep_their_subset_and_quotation_marks_of_visla() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let triplet = |id: u32| {
        json!({"id": id, "filename": "x.jpg", "caption": "a b", "caption2": "b a",
            "negative_caption": "a c"})
    };
    let two = json!([triplet(0), triplet(1)]).to_string();
    write(at, &[("d/swap_att.json", &two), ("d/swap_obj.json", &json!([triplet(0)]).to_string())]);
    let format = json!({"sugar_crepe_pp": {"files": ["d/swap_att.json", "d/swap_obj.json"]}});
    let set = read(at, &format);
    assert_eq!(outline(at, &set), ["swap_att_0", "swap_att_1", "swap_obj_0"]);
    assert_eq!(fields(&set, "split"), ["swap_att", "swap_att", "swap_obj"]);
    assert_eq!(
        [fields(&set, "p1")[0], fields(&set, "p2")[0], fields(&set, "n")[0]],
        ["a b", "b a", "a c"]
    );
    same_from_windows(at, &format, "d/swap_att.json");
    write(at, &[("d/swap_obj.json", &two.replace("a c", " "))]);
    assert!(refused(at, &format).contains("a text of the triplet `swap_obj_0` is empty"));

    let generic = "filename\tcaption\tsecond positive\tnegative_caption\r\nx\ta \"red\tb\tc\r\n";
    let spatial = "image\tsent1\tsent2\tBest reference (Semantically close)\t\
                   Reference-2 (Completely irrelevant)\ny\td\te\tf\tg\n";
    write(at, &[("g.tsv", generic), ("s.tsv", spatial)]);
    let format = json!({"visla": {"generic": "g.tsv", "spatial": "s.tsv"}});
    let set = read(at, &format);
    assert_eq!(outline(at, &set), ["generic_0", "spatial_0"]);
    assert_eq!(fields(&set, "p1"), ["a \"red", "d"]);
    assert_eq!(fields(&set, "n"), ["c", "f"]);
    write(at, &[("s.tsv", &spatial.replace("\tg", ""))]);
    assert!(refused(at, &format).contains("line 2 has 4 values, the header 5"));
}
