from serving_ops.bench_e2e.training import main

raise SystemExit(main())
