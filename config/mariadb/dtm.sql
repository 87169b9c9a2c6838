-- The tables of a DTM 1.19 server whose store is `mysql` (MariaDB or MySQL), in the database `dtm`.
--
-- DTM creates no tables by itself unless told to, and then drops them first. These are ours: the columns that
-- DTM 1.19 reads and writes, with types that do not cut what it stores. Running this file again changes nothing.
--
-- Where the types are wider than DTM's own statement, and why:
--   bin_data  MEDIUMBLOB  a branch's payload: a BLOB ends at 64 KB, a group of many orders does not
--   gid       *_bin       a gid is told apart by case; the default collation takes `Ab1` for `aB1`
--   *_data, result, rollback_reason  texts of the caller: a strict server refuses what is longer than the column
-- Times are DTM's own clock (its server runs in one time zone), to the second: DTM compares them as text of seconds.

CREATE DATABASE IF NOT EXISTS dtm CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- One row a global transaction: where it stands, and when the cron job looks at it next.
CREATE TABLE IF NOT EXISTS dtm.trans_global (
  id                 BIGINT        NOT NULL AUTO_INCREMENT,
  gid                VARCHAR(128)  NOT NULL,
  trans_type         VARCHAR(45)   NOT NULL,               -- tcc, saga, msg, xa, workflow
  status             VARCHAR(12)   NOT NULL,               -- prepared, submitted, aborting, succeed, failed
  query_prepared     VARCHAR(1024) NOT NULL,               -- msg and workflow: whom to ask what became of it
  protocol           VARCHAR(45)   NOT NULL,               -- grpc, http, json-rpc
  create_time        DATETIME      NULL,
  update_time        DATETIME      NULL,
  finish_time        DATETIME      NULL,
  rollback_time      DATETIME      NULL,
  options            TEXT          NULL,                   -- JSON: time-outs, retry interval, branch headers
  custom_data        MEDIUMTEXT    NULL,                   -- JSON of the pattern, e.g. the order of saga steps
  next_cron_interval INT           NULL,                   -- seconds; doubles with each failure
  next_cron_time     DATETIME      NULL,
  owner              VARCHAR(128)  NOT NULL DEFAULT '',    -- random mark of the one who took it last
  ext_data           MEDIUMTEXT    NULL,                   -- JSON: headers for the branches
  result             MEDIUMTEXT    NULL,
  rollback_reason    TEXT          NULL,
  PRIMARY KEY (id),
  UNIQUE KEY one_row_a_gid (gid),
  KEY due (status, next_cron_time),                        -- the cron job: which unfinished one is due?
  KEY taken_by (owner)                                     -- the cron job: the one that I just marked
) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- One row an operation of a branch: a TCC branch registers its confirm and its cancel. DTM reads them in the order of id.
CREATE TABLE IF NOT EXISTS dtm.trans_branch_op (
  id            BIGINT        NOT NULL AUTO_INCREMENT,
  gid           VARCHAR(128)  NOT NULL,
  url           VARCHAR(1024) NOT NULL,                    -- host:port/package.Service/Method
  bin_data      MEDIUMBLOB    NULL,                        -- the request that DTM sends, byte for byte
  branch_id     VARCHAR(128)  NOT NULL,
  op            VARCHAR(45)   NOT NULL,                    -- try, confirm, cancel, action, compensate
  status        VARCHAR(45)   NOT NULL,                    -- prepared, succeed, failed
  finish_time   DATETIME      NULL,
  rollback_time DATETIME      NULL,
  create_time   DATETIME      NULL,
  update_time   DATETIME      NULL,
  PRIMARY KEY (id),
  UNIQUE KEY one_row_an_operation (gid, branch_id, op)
) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Settings that DTM keeps for itself: topics of its message pattern.
CREATE TABLE IF NOT EXISTS dtm.kv (
  id          BIGINT       NOT NULL AUTO_INCREMENT,
  cat         VARCHAR(45)  NOT NULL,
  k           VARCHAR(128) NOT NULL,
  v           MEDIUMTEXT   NULL,
  version     BIGINT       NOT NULL DEFAULT 1,
  create_time DATETIME     NULL,
  update_time DATETIME     NULL,
  PRIMARY KEY (id),
  UNIQUE KEY one_row_a_key (cat, k)
) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
